"""Hoisting: what a graph computes from weights alone is computed once, as long as the weights stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from .passes import attribute, in_place, is_pure, returned

_VERSION = attrgetter("_version")


class Prologue:
    """The part of a graph that depends on no input: its values are kept until a weight that they depend on is changed.

    A change through ``weight.data`` in the same memory cannot be seen.
    """

    def __init__(self, module: GraphModule, constants: Sequence[Tensor]) -> None:
        self._module, self._constants = module, list(constants)
        self._stamp: list[int] | None = None
        self._values: tuple[Tensor, ...] = ()

    def values(self) -> tuple[Tensor, ...]:
        """Return the values that the rest of the graph needs."""
        stamp = [*map(_VERSION, self._constants), *map(Tensor.data_ptr, self._constants)]
        if stamp != self._stamp:
            with torch.no_grad():
                self._values = self._module()
            self._stamp = stamp
        return self._values


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
    return Prologue(prologue, constants), GraphModule(module, rest)


def _early_part(graph: Graph, early: set[Node], border: Sequence[Node]) -> Graph:
    before, values = Graph(), dict[Node, Node]()
    for node in graph.nodes:
        if node in early:
            values[node] = before.node_copy(node, values.__getitem__)
    before.output(tuple(values[node] for node in border))
    before.eliminate_dead_code()
    return before
