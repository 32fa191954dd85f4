"""Recomputation of cheap tensors instead of keeping them between forward and backward pass: less memory, same values.

At the step where a graph holds most memory, the tensors that are kept across it are chosen anew: those of the fewest
bytes from which all that is needed later can be computed by cheap operations (a minimum cut, as for activation
checkpointing in compilers). The same operation on the same tensors gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..ops import Family, NormKind, op_named
from ..torch_internals.graph_memory import arguments_of, is_part, viewed
from ..torch_internals.traces import remove_unused, schema_of
from .lifetimes import Lifetimes, is_tensor
from .passes import in_place, is_pure

LARGE = 8 << 20
"""Bytes; graphs that hold less at their peak are not changed, since Python's overhead counts more there."""
_ROUNDS, _SMALL = 3, 1 / 2000
"""The number of rounds; and the part of the peak below which tensors are kept."""
_START, _END = "start", "end"


def recompute(module: GraphModule, least: int = LARGE) -> None:
    """Recompute cheap tensors where that lowers the peak memory of a graph.

    Args:
        module: the graph; changed.
        least: the smallest peak, in bytes, that is worth it.
    """
    graph = module.graph
    for _ in range(_ROUNDS):
        lifetimes = Lifetimes(graph)
        held = lifetimes.held()
        peak = max(held)
        if peak < least:
            break
        kept, step = _best(lifetimes, held.index(peak), peak)
        if not kept:
            break
        trial = _copied(lifetimes.nodes, step, kept)
        if max(Lifetimes(trial).held()) >= 0.98 * peak:
            break
        graph = trial
    if graph is not module.graph:
        module.graph = graph


def _best(lifetimes: Lifetimes, step: int, peak: int) -> tuple[set[Node], int]:
    """Return the nodes to keep across a step, and that step; nothing if none can be computed again."""
    before, later = lifetimes.nodes[: step + 1], set(lifetimes.nodes[step + 1 :])
    changed = in_place(before[0].graph)
    again = {node for node in before if _is_cheap(node, changed) and _bytes(lifetimes, node) >= _SMALL * peak}
    again |= {node for node in before if (viewed(node) or not is_tensor(node)) and _is_cheap(node, changed)}
    needed = {node for node in before if not later.isdisjoint(node.users)}
    if not needed & again:
        return set(), step
    return _minimum_cut(lifetimes, again, needed), step


def _bytes(lifetimes: Lifetimes, node: Node) -> int:
    return sum(lifetimes.size(owner) for owner in lifetimes.owners[node])


def _is_cheap(node: Node, changed: set[Node]) -> bool:
    """Return whether a node is cheap for each element, on memory that is not changed in place."""
    if node.op != "call_function" or not is_pure(node) or not changed.isdisjoint((node, *node.all_input_nodes)):
        return False
    if is_part(node):
        return isinstance(node.args[0], Node) and _is_cheap(node.args[0], changed)
    if _has_fixed_statistics(node):
        return True
    if not is_tensor(node):
        return False
    if viewed(node) or torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return True
    schema = schema_of(node.target)
    op = op_named(schema.name.partition("::")[2]) if schema is not None else None
    return op is not None and op.family is Family.MOVEMENT


def _has_fixed_statistics(node: Node) -> bool:
    """Return whether a node is a batch norm in eval mode, a scale and a shift."""
    schema = schema_of(node.target)
    op = op_named(schema.name.partition("::")[2]) if schema is not None else None
    if op is None or op.traits.norm is not NormKind.BATCH or schema.is_mutable:
        return False
    given = {argument.name: value for argument, value in arguments_of(node)}
    return given.get("training", given.get("train")) is False


def _minimum_cut(lifetimes: Lifetimes, again: set[Node], needed: set[Node]) -> set[Node]:
    """Return the nodes of the fewest bytes from which the needed ones follow; of several such sets the latest.

    Edges go backward, from needed nodes to those that cannot be recomputed, so that the cut is the latest.
    """
    import networkx  # type: ignore[import-untyped]  # torch itself needs it

    network, met, pending = networkx.DiGraph(), set[Node](), [*needed]
    network.add_nodes_from([_START, _END])
    network.add_edges_from((_START, ("out", node)) for node in needed)
    while pending:
        node = pending.pop()
        if node in met:
            continue
        met.add(node)
        owns_nothing = node in again and (
            bool(viewed(node)) or not is_tensor(node)
        )  # several outputs are kept by parts
        network.add_edge(("out", node), ("in", node), **({} if owns_nothing else {"capacity": _bytes(lifetimes, node)}))
        sources = node.all_input_nodes if node in again else ()
        ends: list[Any] = [("out", source) for source in sources] or [_END]
        network.add_edges_from((("in", node), end) for end in ends)
        pending += sources
    _, (near, _far) = networkx.minimum_cut(network, _START, _END)
    return {node for node in met if ("out", node) in near and ("in", node) not in near}


def _copied(nodes: Sequence[Node], step: int, kept: set[Node]) -> Graph:
    """Return the graph in which everything used after a step is computed from what is kept."""
    graph, values = Graph(), dict[Node, Node]()
    for node in nodes[: step + 1]:
        values[node] = graph.node_copy(node, values.__getitem__)
    later = {node: values[node] for node in kept}
    later |= {node: values[node] for node in nodes[: step + 1] if node.op in ("placeholder", "get_attr")}

    def available(node: Node) -> Node:
        if node not in later:
            for source in node.all_input_nodes:
                available(source)
            later[node] = graph.node_copy(node, later.__getitem__)
        return later[node]

    for node in nodes[step + 1 :]:
        for source in node.all_input_nodes:
            available(source)
        later[node] = graph.node_copy(node, later.__getitem__)
    remove_unused(graph)
    return graph
