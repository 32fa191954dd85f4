"""Hoisting: what a graph computes from weights alone is computed once, as long as the weights stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..torch_internals.traces import remove_unused, schema_of
from .passes import attribute, in_place, is_pure, returned

_VERSION = attrgetter("_version")


_PROBED = 16
"""The most elements of each weight that are compared in each call."""


class Prologue:
    """The part of a graph that depends on no input: its values are kept until a weight that they depend on is changed.

    Torch counts the changes of a tensor, but not those through ``weight.data``. So some elements of each weight of
    which more than views is computed, spread over its memory, are compared too.

    Args:
        module: computes the values.
        constants: the weights that it uses.
        computed: those of them from which values are computed that are no views.
    """

    def __init__(self, module: GraphModule, constants: Sequence[Tensor], computed: Sequence[Tensor]) -> None:
        self._module, self._constants, self._computed = module, list(constants), list(computed)
        self._stamp: list[int] | None = None
        self._probes: list[list[Tensor]] = []
        self._probed: list[Tensor] = []
        self._values: tuple[Tensor, ...] = ()

    def values(self) -> tuple[Tensor, ...]:
        """Return the values that the rest of the graph needs."""
        stamp = [*map(_VERSION, self._constants), *map(Tensor.data_ptr, self._constants)]
        if stamp != self._stamp or not all(map(torch.equal, map(torch.cat, self._probes), self._probed)):
            with torch.no_grad():
                if stamp != self._stamp:
                    self._probes = _probes(self._computed)
                self._probed = [*map(torch.cat, self._probes)]
                self._values = self._module()
            self._stamp = stamp
        return self._values


def _probes(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return views of a few elements of each tensor, those of one dtype and device together."""
    groups: dict[Any, list[Tensor]] = {}
    for x in tensors:
        if x.numel() and x.layout == torch.strided:
            extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
            count = min(extent, _PROBED)
            step = max(1, (extent - 1) // max(1, count - 1))
            groups.setdefault((x.dtype, x.device), []).append(x.detach().as_strided((count,), (step,)))
    return [*groups.values()]


def split(module: GraphModule) -> tuple[Prologue, GraphModule]:
    """Split a graph into the part without inputs, and the rest, which takes the values of that before the inputs."""
    graph, own = module.graph, in_place(module.graph) | returned(module.graph)  # of each call
    early = set[Node]()
    for node in graph.nodes:
        computed = node.op == "call_function" and is_pure(node)
        computed = computed and own.isdisjoint((node, *node.all_input_nodes))
        if node.op == "get_attr" or (computed and all(given in early for given in node.all_input_nodes)):
            early.add(node)
    submodules = {name for name, _ in module.named_children()}
    early -= {node for node in early if node.op == "get_attr" and str(node.target) in submodules}
    border = [node for node in graph.nodes if node in early and any(user not in early for user in node.users)]
    before, values = _early_part(graph, early, border), {}
    rest = Graph()
    for node in border:
        values[node] = rest.placeholder(f"kept_{node.name}")
    for node in graph.nodes:
        if node not in early:
            values[node] = rest.node_copy(node, values.__getitem__)
    prologue = GraphModule(module, before)
    names = [str(node.target) for node in graph.nodes if node in early and node.op == "get_attr"]
    constants = [attribute(module, name) for name in dict.fromkeys(names)]
    computed = [x for name, x in zip(dict.fromkeys(names), constants, strict=True) if name in _computed(graph, early)]
    return Prologue(prologue, constants, computed), GraphModule(module, rest)


def _computed(graph: Graph, early: set[Node]) -> set[str]:
    """Return the names of the weights from which early nodes compute more than views."""
    found, met = set[str](), set[Node]()
    for node in reversed(graph.nodes):
        if node in early and (node in met or (node.op == "call_function" and not _is_view(node))):
            met |= {node, *node.all_input_nodes}
            found |= {str(node.target)} if node.op == "get_attr" else set()
    return found


def _is_view(node: Node) -> bool:
    schema = schema_of(node.target)
    return schema is not None and all(returned.alias_info is not None for returned in schema.returns)


def _early_part(graph: Graph, early: set[Node], border: Sequence[Node]) -> Graph:
    before, values = Graph(), dict[Node, Node]()
    for node in graph.nodes:
        if node in early:
            values[node] = before.node_copy(node, values.__getitem__)
    before.output(tuple(values[node] for node in border))
    remove_unused(before)
    return before
