"""Tensors that are kept for their shape alone: memory that nobody fills takes their place."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from ..ops.shapes_only import shape_alone
from ..torch_internals.graph_memory import arguments_of
from ..torch_internals.traces import schema_of
from .lifetimes import Lifetimes, is_tensor


def without_values(graph: Graph) -> None:
    """Give operations that read the shape of a tensor alone an empty one, where nothing needs the tensor later.

    Args:
        graph: changed.
    """
    lifetimes = Lifetimes(graph)
    for node in lifetimes.nodes:
        schema = schema_of(node.target)
        name = shape_alone(schema.name.partition("::")[2]) if schema is not None else None
        if name is None:
            continue
        place, given = next((i, one) for i, (argument, one) in enumerate(arguments_of(node)) if argument.name == name)
        if place >= len(node.args) or not isinstance(given, Node) or not is_tensor(given):
            continue
        if all(lifetimes.last[owner] == lifetimes.step[node] for owner in lifetimes.owners[given]):
            node.update_arg(place, _empty(graph, node, given))


def _empty(graph: Graph, before: Node, given: Node) -> Node:
    made = given.meta["val"]
    options = {"dtype": made.dtype, "device": made.device}
    with graph.inserting_before(before):
        new = graph.call_function(torch.ops.aten.empty_strided.default, ([*made.shape], [*made.stride()]), options)
    new.meta = dict(given.meta)
    return new
