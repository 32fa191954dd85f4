"""Tensors inside nested containers: find them, replace them."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})
"""Types without tensors in them."""


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, dicts and dataclasses, in a fixed order; repeats are repeated."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (dict, tuple, list)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            if isinstance(value, Tensor):  # as most are: no generator for each
                yield value
            elif type(value) not in PLAIN:
                yield from tensors_in(value)
    elif hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from tensors_in(getattr(tree, field.name, None))


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """`tree` with every tensor replaced by ``function(tensor)``, in the order of :func:`tensors_in`.

    Containers keep their type (named tuples, ordered dicts, frozen dataclasses and such); a container in which
    nothing changes is returned itself, not a copy of it.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        values = {key: map_tensors(function, value) for key, value in tree.items()}
        if all(values[key] is tree[key] for key in tree):
            return tree
        if type(tree) is dict:
            return values
        result = copy.copy(tree)  # an OrderedDict subclass with fields of its own, say
        for key, value in values.items():
            result[key] = value
        return result
    if isinstance(tree, (tuple, list)):
        items = [map_tensors(function, value) for value in tree]
        if all(new is old for new, old in zip(items, tree, strict=True)):
            return tree
        if hasattr(tree, "_fields"):  # a named tuple takes its fields one by one
            return type(tree)(*items)
        return type(tree)(items)
    if hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type):
        return _map_dataclass(function, tree)
    return tree


def _map_dataclass(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    names = [field.name for field in dataclasses.fields(tree) if hasattr(tree, field.name)]
    changed = {}
    for name in names:
        old = getattr(tree, name)
        new = map_tensors(function, old)
        if new is not old:
            changed[name] = new
    if not changed:
        return tree
    result = copy.copy(tree)
    for name, value in changed.items():
        object.__setattr__(result, name, value)  # frozen dataclasses refuse setattr
    return result
