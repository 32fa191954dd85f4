"""The commands of `lxt-compose`: each takes parsed options and returns its answer."""

from .answer import Answer
from .composite_options import CompositeOptions
from .explain import explain
from .explanation import ExplainOptions
from .listing import list_presets, list_rules
from .report import report
from .run import RunOptions, run

__all__ = [
    "Answer",
    "CompositeOptions",
    "ExplainOptions",
    "RunOptions",
    "explain",
    "list_presets",
    "list_rules",
    "report",
    "run",
]
