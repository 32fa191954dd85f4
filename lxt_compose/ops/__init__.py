"""Op families: which functions are the same operation, its family, and what its arguments are to each other."""

from .families import KNOWINGLY_UNCOVERED, Family, Op
from .lookup import (
    can_mutate,
    display_name,
    forward_name,
    is_reversed,
    mutates,
    op_named,
    op_of,
    register,
    same_op,
)
from .traits import Argument, Elements, Elementwise, LayerKind, NormKind, StateSpaceRole, Traits

__all__ = [
    "KNOWINGLY_UNCOVERED",
    "Argument",
    "Elements",
    "Elementwise",
    "Family",
    "LayerKind",
    "NormKind",
    "Op",
    "StateSpaceRole",
    "Traits",
    "can_mutate",
    "display_name",
    "forward_name",
    "is_reversed",
    "mutates",
    "op_named",
    "op_of",
    "register",
    "same_op",
]
