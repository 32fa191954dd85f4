"""Reuse of memory: operations of a graph write into memory that is no longer needed, with the same values.

New memory costs more than the arithmetic on it where tensors are large: the system hands out pages of zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..torch_internals.traces import schema_of
from .lifetimes import Lifetimes, is_tensor
from .passes import in_place, is_pure


def reuse(module: GraphModule) -> None:
    """Have elementwise operations write into an operand that is used there for the last time.

    Args:
        module: the graph, run without autograd; changed. Its inputs and constants are never written to.
    """
    lifetimes, changed = Lifetimes(module.graph), in_place(module.graph)
    instead: dict[Node, Node] = {}
    """For nodes that own no memory any longer, whose it is now."""

    def owners(node: Node) -> set[Node]:
        found = set[Node]()
        for owner in lifetimes.owners[node]:
            while owner in instead:
                owner = instead[owner]
            found.add(owner)
        return found

    for step, node in enumerate(lifetimes.nodes):
        into = _with_out(node) if is_tensor(node) and node not in changed and is_pure(node) else None
        if into is None:
            continue
        for given in node.all_input_nodes:
            own = owners(given)
            others = [one for one in node.all_input_nodes if one is not given]
            if len(own) != 1 or not _is_alike(given, node) or not own.isdisjoint(changed):
                continue
            (owner,) = own
            is_last = lifetimes.last[owner] == step and owner.op == "call_function"
            if is_last and all(owner not in owners(one) for one in others):
                node.target, node.kwargs = into, {**node.kwargs, "out": given}
                instead[node] = owner
                lifetimes.last[owner] = lifetimes.last[node]
                break
    module.recompile()


def _is_alike(given: Node, node: Node) -> bool:
    """Return whether the memory of a node can hold the result of another one."""
    if not is_tensor(given):
        return False
    a, b = given.meta["val"], node.meta["val"]
    same = (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
    return same and a.numel() > 0 and bool(torch.ops.aten.is_non_overlapping_and_dense.default(a))


def _with_out(node: Node) -> Any:
    """Return the form of an elementwise operation that writes into a tensor it is given; None if there is none."""
    target: Any = node.target
    if torch.Tag.pointwise not in getattr(target, "tags", ()):
        return None
    wanted = [(argument.name, str(argument.type)) for argument in schema_of(target).arguments]
    for name in target.overloadpacket.overloads():
        form = getattr(target.overloadpacket, name)
        *arguments, last = schema_of(form).arguments or [None]
        if last is None or last.name != "out" or torch.Tag.generated in form.tags:
            continue
        if [(argument.name, str(argument.type)) for argument in arguments] == wanted:
            return form
    return None
