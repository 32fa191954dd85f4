"""Nodes of the autograd graph: their functions, their kinds, their edges, and hooks that scale what they send."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ..ops import Family, op_named, registered
from ..torch_internals.backward_hooks import HOOKED, past_hooks
from .functions import Link, RelevanceFunction

EXACT, CUSTOM, CHECKPOINT, OTHER = "exact", "custom autograd function", "checkpoint", "not seen by the function mode"
_BOOKKEEPING = frozenset({"AccumulateGrad", "CopySlices", "CopyBackwards"})
_CAPITALS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def function_of_node(node: Any) -> type | None:
    """Return the custom autograd function of a node; None if it has none."""
    return getattr(type(node), "_forward_cls", type(node)) if isinstance(node, BackwardCFunction) else None


def kind_of_node(node: Any) -> str:
    """Return the kind of a node: exact (it moves gradients, or is a rule's own), custom, a checkpoint, or any other."""
    function = function_of_node(node)
    if function is not None:
        own = registered(function)
        if issubclass(function, (RelevanceFunction, HOOKED)) or (own is not None and own.family is Family.MOVEMENT):
            return EXACT
        return CHECKPOINT if function.__module__ == "torch.utils.checkpoint" else CUSTOM
    name = _plain(node)
    op = op_named(_CAPITALS.sub("_", name).lower())
    return EXACT if name in _BOOKKEEPING or (op is not None and op.family is Family.MOVEMENT) else OTHER


def has_backward(x: Tensor) -> bool:
    """Return whether gradients pass the operation that made a tensor.

    Kernels of libraries have a node even if they have no backward.
    """
    return x.requires_grad and (x.grad_fn is None or not x.grad_fn.name().endswith("::WarnNotImplemented"))


def name_of_node(node: Any) -> str:
    """Return the name of a node as a user would write it: ``Swish.apply`` (a custom function), ``SigmoidBackward0``."""
    function = function_of_node(node)
    return str(node.name()).rpartition("::")[2] if function is None else f"{function.__name__}.apply"


def _plain(node: Any) -> str:
    return str(node.name()).rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")


Edge = tuple[Any, int]
"""An edge of the autograd graph: the node that it leads to, and the place among that node's outputs."""


def edge_of(x: Tensor) -> Edge:
    """Return the edge of a tensor that requires grad, as of now: a change in place gives it another."""
    node = x.grad_fn
    if node is not None:
        return node, x.output_nr
    edge = torch.autograd.graph.get_gradient_edge(x)
    return edge[0], edge[1]


def origin_of(x: Tensor) -> Edge:
    """Return the edge of a tensor behind torch's full backward hooks, which put another tensor in its place."""
    node = x.grad_fn
    return edge_of(x) if node is None else past_hooks(node, x.output_nr)


def past_links(edge: Edge) -> Edge:
    """Return the edge behind all links, which send on what arrives."""
    while function_of_node(edge[0]) is Link:
        edge = edge[0].next_functions[0]
    return edge


def scale_edges(outputs: Iterable[Tensor], factors: Mapping[Edge, float]) -> None:
    """Multiply the gradients that an operation sends back to its inputs by a factor for each input.

    This is done by a hook on each autograd node of the operation that leads to an input; no node is added to the graph.

    Args:
        outputs: what the operation has put out.
        factors: the edges of its inputs when it ran, each with its factor; inputs with factor 0 are left out.
    """
    ends = {node for node, _ in factors}
    pending = [z.grad_fn for z in outputs if z.grad_fn is not None]
    met: set[Any] = set()
    while pending:
        node = pending.pop()
        if node in met or node in ends:
            continue
        met.add(node)
        found = [factors.get(edge, 1.0) for edge in node.next_functions]
        if any(factor != 1 for factor in found):
            node.register_hook(_Scale(found))
        pending += [source for source, _ in node.next_functions if source is not None]


class _Scale:
    """A hook on an autograd node: multiplies each gradient that the node sends on with its factor."""

    __slots__ = ("factors",)

    def __init__(self, factors: list[float]) -> None:
        self.factors = factors

    def __call__(self, sent: Sequence[Tensor | None], _: Any) -> tuple[Tensor | None, ...]:
        pairs = zip(sent, self.factors, strict=True)
        return tuple([slot if slot is None or factor == 1 else slot * factor for slot, factor in pairs])
