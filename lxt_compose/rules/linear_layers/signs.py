"""The sign of what a graph computes, read off its operations while it is traced: no number of it can be negative.

NaN is not negative, nor is -0.0. What is proven holds for any inputs of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ...ops.signs import Sign, sign_of
from ...torch_internals.graph_memory import arguments_of, memory_of, viewed, written
from ...torch_internals.readings import filled_with
from ...torch_internals.traces import proxy_of, schema_of

_INDICES = ("index", "indices")
_NUMBERS = ("number", "float")


def is_never_negative(x: Tensor) -> bool:
    """Return whether the graph that is being traced shows that no element of a tensor is negative.

    False says that it does not show it.
    """
    proxy = proxy_of(x)
    return proxy is not None and _Proof(proxy.proxy.node.graph).holds(proxy.proxy.node)


class _Proof:
    """The values of a node as they are after the last operation so far.

    Memory may have been changed since a node was made: then what was written to it counts too.
    """

    def __init__(self, graph: Graph) -> None:
        self._step = {node: step for step, node in enumerate(graph.nodes)}
        self._writers: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            changed = {one for given in written(node) for one in memory_of(given)}
            for one in changed:
                self._writers.setdefault(one, []).append(node)

    def holds(self, node: Node) -> bool:
        """Return whether no element of a node can be negative now."""
        pending: list[tuple[Node, int]] = [(node, len(self._step))]
        met = set[Node]()
        while pending:
            one, now = pending.pop()
            made = self._step[one]
            later = [each for each in self._writers.get(one, ()) if made < self._step[each] < now]
            tensors = _behind(one)
            whole = [i for i, each in enumerate(later) if any(_first_name(x) in tensors for x in written(each))]
            for each in later[whole[-1] :] if whole else [one, *later]:
                if each in met:
                    continue
                met.add(each)
                needed = _needed(each)
                if needed is None:
                    return False
                pending += [(given, self._step[each]) for given in needed]
        return True


def _behind(node: Node) -> set[Node]:
    """Return the tensors that hold all elements of a node: itself, what it is a view of, and so on."""
    found = {_first_name(node)}
    while len(given := viewed(node)) == 1 and _sign_of(node).kept:
        (node,) = given
        found.add(_first_name(node))
    return found


def _sign_of(node: Node) -> Sign:
    schema = schema_of(node.target)
    return Sign() if schema is None else sign_of(schema.name.partition("::")[2])


def _first_name(node: Node) -> Node:
    """Return the first node that is the same tensor: ``detach``, and what an operation in place returns, are others."""
    while len(given := viewed(node)) == 1 and _lies_alike(node, given[0]):
        (node,) = given
    return node


def _lies_alike(node: Node, given: Node) -> bool:
    pairs = [*zip(_tensors(node), _tensors(given), strict=False)]
    return len(pairs) == 1 and all(
        (a.shape, a.stride(), a.storage_offset(), a.dtype) == (b.shape, b.stride(), b.storage_offset(), b.dtype)
        for a, b in pairs
    )


def _needed(node: Node) -> list[Node] | None:
    """Return the nodes that must not be negative for what an operation puts out not to be; None if it may be anyway."""
    made = _tensors(node)
    if made and all(one.dtype == torch.bool for one in made):
        return []
    if not any(one.is_floating_point() for one in made):  # integers may overflow
        return None
    if getattr(node.target, "__name__", "") == "getitem":
        return [one for one in node.args[:1] if isinstance(one, Node)]
    schema = schema_of(node.target)
    if schema is None:
        return None
    if not viewed(node) and (number := filled_with(node)) is not None:
        return [] if number >= 0 else None
    known = _sign_of(node)
    if known.always or _is_at_least_zero(known, node) or _is_even(known, node) or _is_squared(known, node):
        return []
    return _operands(node) if known.kept and _is_alike(node, made) else None


def _tensors(node: Any) -> list[Tensor]:
    made = node.meta.get("val") if isinstance(node, Node) else None
    return [one for one in (made if isinstance(made, (list, tuple)) else [made]) if isinstance(one, Tensor)]


def _is_alike(node: Node, made: list[Tensor]) -> bool:
    """Return whether a view has numbers of the type of those that it views, not their bits as another one."""
    dtypes = {one.dtype for given in viewed(node) for one in _tensors(given)}
    return not dtypes or all(dtypes == {one.dtype} for one in made)


def _is_squared(known: Sign, node: Node) -> bool:
    """Return whether an operation multiplies a tensor with itself alone; NaN stays NaN."""
    return known.product and len(node.args) == 2 and node.args[0] is node.args[1]


def _is_at_least_zero(known: Sign, node: Node) -> bool:
    if known.least is None:
        return False
    given = {argument.name: value for argument, value in arguments_of(node)}
    least = given.get(known.least.keyword)
    return isinstance(least, (int, float)) and least >= 0 and _operands(node) is not None


def _is_even(known: Sign, node: Node) -> bool:
    given = {argument.name: value for argument, value in arguments_of(node)}
    power = given.get(known.exponent.keyword) if known.exponent is not None else None
    return isinstance(power, (int, float)) and power % 2 == 0


def _operands(node: Node) -> list[Node] | None:
    """Return the tensors whose elements an operation takes; None if it is given a negative number."""
    found = list[Node]()
    for argument, given in arguments_of(node):
        said = str(argument.type)
        values = given if isinstance(given, (list, tuple)) else [given]
        takes_tensor = "Tensor" in said and argument.name not in _INDICES
        if takes_tensor or any(one in said for one in _NUMBERS) or argument.name == "divisor_override":
            numbers = [one for one in values if one is not None and not (takes_tensor and _tensors(one))]
            if not all(isinstance(one, (int, float)) and one >= 0 for one in numbers):  # also in place of a tensor
                return None
        if takes_tensor:
            found += [one for one in values if _tensors(one)]
    return found
