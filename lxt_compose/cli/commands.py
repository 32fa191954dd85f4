"""The commands of `lxt-compose`: each takes parsed options and returns its answer."""

from .answer import Answer
from .composite_options import CompositeOptions
from .concepts import ConceptOptions, collect_concepts
from .explain import explain
from .explain_answer import AnswerOptions, explain_answer
from .explanation import ExplainOptions
from .listing import list_presets, list_rules
from .report import report
from .run import RunOptions, run

__all__ = [
    "Answer",
    "AnswerOptions",
    "CompositeOptions",
    "ConceptOptions",
    "ExplainOptions",
    "RunOptions",
    "collect_concepts",
    "explain",
    "explain_answer",
    "list_presets",
    "list_rules",
    "report",
    "run",
]
