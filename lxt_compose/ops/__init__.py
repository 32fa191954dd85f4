"""Op families: which functions are the same operation, its family, and what its arguments are to each other."""

from .families import DROPOUTS, KNOWINGLY_UNCOVERED, Family, Op
from .lookup import can_mutate, display_name, is_reversed, mutates, op_named, op_of, same_op

__all__ = [
    "DROPOUTS",
    "KNOWINGLY_UNCOVERED",
    "Family",
    "Op",
    "can_mutate",
    "display_name",
    "is_reversed",
    "mutates",
    "op_named",
    "op_of",
    "same_op",
]
