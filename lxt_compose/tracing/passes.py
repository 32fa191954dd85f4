"""Passes that make a graph of ATen's operations shorter, with bit-identical values."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..torch_internals.graph_memory import memory_of, written
from ..torch_internals.readings import filled_with
from ..torch_internals.traces import remove_unused, schema_of

_ALIASES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
_VIEW, _FULL = torch.ops.aten.view.default, torch.ops.aten.full.default


def simplify(module: GraphModule) -> None:
    """Remove nodes that compute nothing new: other names of a tensor, repeated operations, unused results."""
    without_second_names(module)
    _without_views_of_views(module.graph)
    _with_constants(module.graph)
    _without_repeats(module.graph)
    remove_unused(module.graph)
    module.recompile()


def without_second_names(module: GraphModule) -> None:
    """Use the first name of each tensor: of attributes of the graph, and of what ``detach`` gives again."""
    first: dict[int, Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            known = first.setdefault(id(attribute(module, str(node.target))), node)
            if known is not node:
                node.replace_all_uses_with(known)
                module.graph.erase_node(node)
    _without_aliases(module.graph)


def attribute(module: Any, name: str) -> Any:
    """Return an attribute of a module by its dotted name."""
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _without_aliases(graph: Graph) -> None:
    """Remove ``detach``, which gives the same tensor in a graph without a backward pass of its own."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _ALIASES:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _without_views_of_views(graph: Graph) -> None:
    """Replace views of views by views of the base, and remove views with the base's own shape."""
    for node in list(graph.nodes):
        if node.target is not _VIEW or not isinstance(node.args[0], Node):
            continue
        source = node.args[0]
        while source.target is _VIEW and isinstance(source.args[0], Node):
            source = source.args[0]
        before, after = source.meta.get("val"), node.meta.get("val")
        if not (is_fixed(before) and is_fixed(after)):
            continue
        if before.shape == after.shape and before.stride() == after.stride():
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        else:
            node.update_arg(0, source)


def _with_constants(graph: Graph) -> None:
    """Make tensors that hold one number without another tensor, from the number and a shape: so they are made once."""
    changed, first = in_place(graph), next(iter(graph.nodes))
    for node in list(graph.nodes):
        made = node.meta.get("val")
        value = None if node.target is _VIEW else filled_with(node)
        if value is None or node in changed or not is_fixed(made) or not made.is_contiguous():
            continue
        with graph.inserting_before(first):
            options: dict[str, Any] = {"dtype": made.dtype, "device": made.device, "pin_memory": False}
            new = graph.call_function(_FULL, (list(made.shape), value), options)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def is_fixed(made: Any) -> TypeGuard[Tensor]:
    """Return whether a node is a tensor of known shape."""
    return isinstance(made, Tensor) and all(isinstance(size, int) for size in (*made.shape, *made.stride()))


def _without_repeats(graph: Graph) -> None:
    """Remove repeated operations on the same arguments, unless they change something in place or draw at random."""
    changed = in_place(graph)
    first: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_pure(node) or not changed.isdisjoint((node, *node.all_input_nodes)):
            continue
        try:
            key = (node.target, _frozen(node.args), _frozen(node.kwargs))
            hash(key)
        except TypeError:
            continue
        known = first.setdefault(key, node)
        if known is not node:
            node.replace_all_uses_with(known)
            graph.erase_node(node)


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *map(_frozen, value))
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in value.items())
    return (type(value).__name__, repr(value)) if isinstance(value, (int, float)) else value  # 1 is not 1.0, nor True


def is_pure(node: Node) -> bool:
    """Return whether an operation is deterministic and changes nothing."""
    schema = schema_of(node.target)
    if schema is None:
        return getattr(node.target, "__module__", "") == "_operator"
    return not schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags  # type: ignore[union-attr]


def is_random(graph: Graph) -> bool:
    """Return whether a graph draws random numbers."""
    random = torch.Tag.nondeterministic_seeded
    nodes = [node for node in graph.nodes if random in getattr(node.target, "tags", ())]
    return not all(_never_drops(node) for node in nodes)


def _never_drops(node: Node) -> bool:
    """Return whether an operation with dropout, such as attention, has a rate of 0."""
    arguments = schema_of(node.target).arguments
    places = [(place, each) for place, each in enumerate(arguments) if each.name == "dropout_p"]
    given = [node.args[i] if i < len(node.args) else node.kwargs.get(each.name, 0.0) for i, each in places]
    return bool(given) and all(value == 0 for value in given)


def changes_attributes(graph: Graph) -> bool:
    """Return whether a graph changes a tensor in place that is neither its own nor an input."""
    return any(node.op == "get_attr" for node in in_place(graph))


def in_place(graph: Graph) -> set[Node]:
    """Return the nodes whose memory some operation of the graph changes in place."""
    found: set[Node] = set()
    for node in graph.nodes:
        found |= {target for given in written(node) for target in memory_of(given)}
    return found


def returned(graph: Graph) -> set[Node]:
    """Return the nodes that may share memory with the outputs of a graph."""
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    return {one for given in output.all_input_nodes for one in memory_of(given)}
