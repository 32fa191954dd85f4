"""Tensors inside nested containers: find them, replace them."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})
"""Types without tensors in them."""


def plain(value: Any) -> Any:
    """Return a number of another library, such as numpy's, as Python's own: torch treats both alike."""
    return value if type(value) in PLAIN or not isinstance(value, Real) else getattr(value, "item", lambda: value)()


_CONTAINERS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {}
"""Classes that users have registered, with the functions that take an object apart and make one of other content."""


def register_container(
    kind: type, flatten: Callable[[Any], Any], unflatten: Callable[[Any, Any], Any] | None = None
) -> None:
    """Have tensors found in objects of a class: modules may take and return them then.

    Tuples, lists, dicts and dataclasses need no registration.

    Args:
        kind: the class; subclasses are meant too.
        flatten: gives what is inside, as a tuple, list or dict.
        unflatten: makes a new object from the old one and from its content with other tensors; by default a shallow
            copy whose attributes are set, so `flatten` must give a dict of attributes.

    Raises:
        TypeError: `kind` is no class; when a model runs, also if `flatten` gives no dict and `unflatten` is missing.
    """
    if not isinstance(kind, type):
        raise TypeError(f"register_container() takes a class, got {kind!r}")
    _CONTAINERS[kind] = flatten, unflatten or _with_attributes


def _with_attributes(old: Any, values: dict[str, Any]) -> Any:
    if not isinstance(values, dict):
        kind = type(old).__name__
        raise TypeError(
            f"register_container({kind}, flatten): flatten gave a {type(values).__name__}, of which no new {kind} "
            f"can be made; let it give a dict of attributes, such as vars, or give unflatten(old, inside) too"
        )
    new = copy.copy(old)
    for name, value in values.items():
        object.__setattr__(new, name, value)  # frozen objects refuse setattr
    return new


def _registered(tree: Any) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]] | None:
    return next((_CONTAINERS[kind] for kind in type(tree).__mro__ if kind in _CONTAINERS), None)


def contents(tree: Any) -> dict[str, Any] | None:
    """Return what a dictionary, a dataclass or a registered container holds, by names; None of anything else."""
    if isinstance(tree, dict):
        return {str(key): value for key, value in tree.items()}
    if hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type):
        return {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree) if hasattr(tree, f.name)}
    found = _registered(tree) if _CONTAINERS else None
    inside = None if found is None else found[0](tree)
    if isinstance(inside, (tuple, list)):
        return {str(place): value for place, value in enumerate(inside)}
    return inside


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists, dicts and dataclasses, in a fixed order; repeats are repeated."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (dict, tuple, list)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            if isinstance(value, Tensor):  # the most frequent case, without a generator
                yield value
            elif type(value) not in PLAIN:
                yield from tensors_in(value)
    elif hasattr(tree, "__dataclass_fields__") and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from tensors_in(getattr(tree, field.name, None))
    elif _CONTAINERS and (found := _registered(tree)) is not None:
        yield from tensors_in(found[0](tree))


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Return `tree` with every tensor replaced by ``function(tensor)``, in the order of :func:`tensors_in`.

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
    if _CONTAINERS and (found := _registered(tree)) is not None:
        inside = found[0](tree)
        changed = map_tensors(function, inside)
        return tree if changed is inside else found[1](tree, changed)
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
