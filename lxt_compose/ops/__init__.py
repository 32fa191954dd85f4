"""Op families: which functions are the same operation, its family, and what its arguments are to each other."""

from .families import Family, Op
from .integers import Effect, Integers, integers_of, makes_integers
from .lookup import (
    can_mutate,
    display_name,
    forward_name,
    is_reversed,
    mutates,
    op_named,
    op_of,
    same_op,
)
from .other_functions import compares, cuts_history, fills, is_attribute, returns_no_tensor
from .register import register
from .registry import autograd_functions, function_of_apply, is_autograd_function, is_operator, registered
from .traits import Argument, Elements, Elementwise, LayerKind, NormKind, SoftmaxPart, StateSpaceRole, Traits

__all__ = [
    "Argument",
    "Effect",
    "Elements",
    "Elementwise",
    "Family",
    "Integers",
    "LayerKind",
    "NormKind",
    "Op",
    "SoftmaxPart",
    "StateSpaceRole",
    "Traits",
    "autograd_functions",
    "can_mutate",
    "compares",
    "cuts_history",
    "display_name",
    "fills",
    "forward_name",
    "function_of_apply",
    "integers_of",
    "is_attribute",
    "is_autograd_function",
    "is_operator",
    "is_reversed",
    "makes_integers",
    "mutates",
    "op_named",
    "op_of",
    "register",
    "registered",
    "returns_no_tensor",
    "same_op",
]
