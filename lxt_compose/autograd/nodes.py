"""What a node of the autograd graph is: which function made it, and whether it only moves gradients."""

from __future__ import annotations

import re
from typing import Any

from torch.autograd.function import BackwardCFunction

from ..ops import Family, op_named
from ..torch_internals import IDENTITY
from .functions import RelevanceFunction

EXACT, CUSTOM, CHECKPOINT, OTHER = "exact", "custom autograd function", "checkpoint", "not seen by the function mode"
_BOOKKEEPING = frozenset({"AccumulateGrad", "CopySlices", "CopyBackwards"})
_CAPITALS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def function_of_node(node: Any) -> type | None:
    """The autograd function in Python that made a node, if one did."""
    return getattr(type(node), "_forward_cls", type(node)) if isinstance(node, BackwardCFunction) else None


def kind_of_node(node: Any) -> str:
    """What a node is by itself: exact (it moves gradients, or is a rule's own), custom, a checkpoint, or anything."""
    function = function_of_node(node)
    if function is not None:
        if issubclass(function, (RelevanceFunction, IDENTITY)):
            return EXACT
        return CHECKPOINT if function.__module__ == "torch.utils.checkpoint" else CUSTOM
    name = _plain(node)
    op = op_named(_CAPITALS.sub("_", name).lower())
    return EXACT if name in _BOOKKEEPING or (op is not None and op.family is Family.MOVEMENT) else OTHER


def name_of_node(node: Any) -> str:
    """How a user would know a node: ``Swish.apply`` for a custom function, ``SigmoidBackward0`` for one of torch."""
    function = function_of_node(node)
    return str(node.name()).rpartition("::")[2] if function is None else f"{function.__name__}.apply"


def _plain(node: Any) -> str:
    return str(node.name()).rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")
