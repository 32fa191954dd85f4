"""What the operations of a graph do with memory, by their schemas: what they write to, and what is a view of what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from .traces import schema_of

_MAY_BE_VIEWS = (torch.ops.aten.reshape.default, torch.ops.aten.contiguous.default, torch.ops.aten._unsafe_view.default)
"""Operations whose schema does not say so."""


def written(node: Node) -> Iterator[Node]:
    """Yield the arguments that an operation changes in place."""
    schema = schema_of(node.target)
    if schema is None or not schema.is_mutable:
        return
    for argument, given in arguments_of(node):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from given if isinstance(given, (list, tuple)) else () if given is None else (given,)


def arguments_of(node: Node) -> Iterator[tuple[Any, Any]]:
    """Yield the arguments of an operation by its schema, each with what it was given, or its default."""
    for place, argument in enumerate(schema_of(node.target).arguments):
        default = argument.default_value if argument.has_default_value() else None
        yield argument, node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, default)


def memory_of(node: Node) -> set[Node]:
    """Return a node, all nodes that it may be a view of, and all possible views of those."""
    met, pending = set[Node](), [node]
    while pending:
        one = pending.pop()
        if one in met or not isinstance(one, Node):
            continue
        met.add(one)
        pending += viewed(one)
        pending += [user for user in one.users if one in viewed(user)]
    return met


def is_part(node: Node) -> bool:
    """Return whether a node is one of several new tensors that an operation puts out."""
    if getattr(node.target, "__name__", "") != "getitem":
        return False
    return not isinstance(node.args[0], Node) or not viewed(node.args[0])


def viewed(node: Node) -> list[Node]:
    """Return the arguments whose memory a node may share."""
    schema = schema_of(node.target)
    if schema is None:
        is_view = getattr(node.target, "__name__", "") == "getitem" and not is_part(node)
        return list(node.all_input_nodes) if is_view else []
    shared = {place for place, argument in enumerate(schema.arguments) if argument.alias_info is not None}
    if node.target in _MAY_BE_VIEWS:
        shared = {0}
    given = [value for place, value in enumerate(node.args) if place in shared]
    flat = [one for value in given for one in (value if isinstance(value, (list, tuple)) else (value,))]
    return [one for one in flat if isinstance(one, Node)]
