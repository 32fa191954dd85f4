"""The ledger: where the relevance of the output went, and what of it is missing."""

from ..rules.absorption import KINDS
from .books import Amount, Entry, ModuleEntry
from .graph_check import GraphCheck, GraphRow
from .ledger import Ledger
from .recorder import Recorder

__all__ = ["KINDS", "Amount", "Entry", "GraphCheck", "GraphRow", "Ledger", "ModuleEntry", "Recorder"]
