"""What the commands of `lxt-compose` do: each takes parsed options and gives back what is to be printed."""

from .answer import Answer
from .explain import Wishes, explain
from .listing import list_presets, list_rules
from .report import report
from .rules_wanted import RulesWanted

__all__ = ["Answer", "RulesWanted", "Wishes", "explain", "list_presets", "list_rules", "report"]
