"""What the commands of `lxt-compose` do: each takes parsed options and gives back what is to be printed."""

from .answer import Answer
from .composite_options import CompositeOptions
from .explain import explain
from .explanation import ExplainOptions
from .listing import list_presets, list_rules
from .report import report

__all__ = ["Answer", "CompositeOptions", "ExplainOptions", "explain", "list_presets", "list_rules", "report"]
