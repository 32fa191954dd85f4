"""Changes in place as operations with a result of their own, and copies that protected from them: to be reused freely.

What is changed in place cannot be computed again, and what it was before has to be copied. Where memory can be reused
without harm, `reuse` does it later.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..torch_internals.graph_memory import memory_of, written
from ..torch_internals.traces import schema_of, tree_map_only
from .passes import in_place, is_fixed, returned

_CLONE, _COND = torch.ops.aten.clone.default, torch.ops.higher_order.cond


def without_writes(graph: Graph) -> None:
    """Replace operations that change a tensor of the graph in place by those that put out the same as a new one.

    Args:
        graph: changed. A tensor of which an older view is used later is changed in place as before.
    """
    step = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        given = list(written(node))
        form = _with_result(node) if len(given) == 1 else None
        if form is None or not _is_free(given[0], node, step) or not _is_alike(form, node, given[0]):
            continue
        with graph.inserting_before(node):
            new = graph.call_function(form, node.args, dict(node.kwargs))
        new.meta, step[new] = dict(node.meta), step[node]
        for user in [user for user in given[0].users if step[user] > step[node]]:
            user.replace_input_with(given[0], new)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _with_result(node: Node) -> Any:
    """Return the operation that puts out what another one writes into its first argument; None if there is none."""
    target: Any = node.target
    schema = schema_of(target)
    name = schema.name.partition("::")[2]
    if not name.endswith("_") or len(schema.returns) != 1 or node.args[:1] != (next(written(node)),):
        return None
    form = getattr(getattr(torch.ops.aten, name[:-1], None), target._overloadname, None)
    wanted = [(each.name, str(each.type)) for each in schema.arguments]
    found = schema_of(form)
    if found is None or found.is_mutable or [(each.name, str(each.type)) for each in found.arguments] != wanted:
        return None
    return form


def _is_free(given: Node, node: Node, step: dict[Node, int]) -> bool:
    """Return whether nothing else sees that a tensor is changed: it is the graph's own, and no older view is used."""
    for one in memory_of(given):
        if one.op != "call_function":
            return False
        if one not in (given, node) and step[one] < step[node] and any(step[user] > step[node] for user in one.users):
            return False
    return True


def _is_alike(form: Any, node: Node, given: Node) -> bool:
    """Return whether a result of its own has the dtype and the strides of the memory that was written to."""
    values = tree_map_only(Node, lambda one: one.meta.get("val"), (node.args, node.kwargs))
    if not is_fixed(given.meta.get("val")):
        return False
    try:
        args, kwargs = tree_map_only(Tensor, _without_memory, values)
        made = form(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return False
    wanted = given.meta["val"]
    return (made.shape, made.stride(), made.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)


def _without_memory(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def without_copies(graph: Graph) -> None:
    """Remove copies of what nobody changes, neither the copy nor the tensor; those that leave the graph stay.

    Branches of a graph take no two tensors that share memory, so what is copied for them stays too.
    """
    kept = in_place(graph) | returned(graph)
    for node in list(graph.nodes):
        if node.target is not _CLONE or node in kept or node.args[0] in kept or not is_fixed(node.meta.get("val")):
            continue
        made, given = node.meta["val"], node.args[0].meta.get("val")
        if any(user.target is _COND for user in node.users) or not is_fixed(given):
            continue
        if made.stride() == given.stride():
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
