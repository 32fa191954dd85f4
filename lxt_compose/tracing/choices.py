"""Choices by data in a graph that runs in Python: one branch, instead of the sum of branches that compilers need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..torch_internals.readings import filled_with
from ..torch_internals.traces import remove_unused

_COND, _ADD = torch.ops.higher_order.cond, torch.ops.aten.add.Tensor


def take_one(module: GraphModule) -> None:
    """Make a graph run only the branches whose conditions hold.

    ``torch.cond`` has two branches. Where a rule has more, a graph adds the results of several, and those that do not
    hold give zeros; here the zeros are neither made nor added.

    Args:
        module: the graph; changed. It runs in Python from now on, not in compilers.
    """
    sums = dict[Node, list[Any]]()
    """For each sum of nothing but choices between a way and zeros: these, in order."""
    for node in module.graph.nodes:
        if node.target is _ADD and len(node.args) == 2 and not node.kwargs:
            summands = [sums.get(one) or [one] for one in node.args]
            if all(_is_once(one) and (one in sums or _is_way_or_zeros(module, one)) for one in node.args):
                sums[node] = [*summands[0], *summands[1]]
    for node, choices in sums.items():
        if sums.keys().isdisjoint(node.users):
            with module.graph.inserting_before(node):
                new = module.graph.call_function(_sum_of_ways, (tuple(one.args[0].args for one in choices),))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
    remove_unused(module.graph)
    for node in module.graph.nodes:
        if node.target is _COND:
            node.target = _way
    module.recompile()


def has_choices(module: GraphModule) -> bool:
    """Return whether a graph has branches that depend on the data."""
    return any(node.target is _COND for node in module.graph.nodes)


def _is_once(node: Any) -> bool:
    return isinstance(node, Node) and len(node.users) == 1


def _is_way_or_zeros(module: GraphModule, node: Any) -> bool:
    choice: Any = node.args[0] if getattr(node.target, "__name__", "") == "getitem" else None
    if not _is_once(choice) or choice.target is not _COND:
        return False
    otherwise: Any = choice.args[2]
    outputs = next(each for each in reversed(getattr(module, otherwise.target).graph.nodes) if each.op == "output")
    return len(outputs.all_input_nodes) == 1 and filled_with(outputs.all_input_nodes[0]) == 0


def _way(holds: Tensor, then: GraphModule, otherwise: GraphModule, operands: tuple[Any, ...]) -> Any:
    return (then if holds else otherwise)(*operands)


def _sum_of_ways(choices: tuple[tuple[Tensor, GraphModule, GraphModule, tuple[Any, ...]], ...]) -> Tensor:
    found: list[Tensor] = [then(*operands)[0] for holds, then, _, operands in choices if holds]
    if not found:
        _, _, zeros, operands = choices[-1]
        found = [zeros(*operands)[0]]
    return sum(found[1:], found[0])
