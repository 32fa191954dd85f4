"""The form of a call: its arguments without the carriers. What depends on no tensor is looked up by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any

from torch import Tensor, nn

from ..autograd.trees import PLAIN, tensors_in

Form = tuple[Any, ...]
"""The number of arguments, the keywords, and the arguments, with :data:`CARRIER` for each carrier."""
CARRIER = object()
_CONSTANT = object()
_NO_TENSORS = PLAIN | {slice, EllipsisType}
_TENSORS = frozenset({Tensor, nn.Parameter})
"""The types of most tensors, which are asked for first: `isinstance` takes longer."""


def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], Form | None]:
    """Return the carriers among the arguments of a call, also inside containers, and the form of the call.

    A call that is given a constant tensor or a container, and not carriers and plain values alone, has no form.
    """
    carriers, plain = [], True
    form: list[Any] = [len(args), *kwargs]
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            if value.requires_grad:
                carriers.append(value)
                form.append(CARRIER)
            else:
                plain = False
        elif type(value) in PLAIN:  # what most arguments are that are no tensors
            form.append(value)
        else:
            plain = False
            carriers += [tensor for tensor in tensors_in(value) if tensor.requires_grad]
    return carriers, tuple(form) if plain else None


def sketch(args: Sequence[Any], kwargs: Mapping[str, Any], by_values: bool, large: bool) -> tuple[list[Tensor], Any]:
    """Return the carriers among the arguments of a call, and where these and constant tensors are given.

    No carriers where tensors may be out of sight, in containers.

    Args:
        args: the arguments.
        kwargs: the same by keyword.
        by_values: whether the sketch holds all other arguments.
        large: whether constant tensors are to have several elements, each in memory: others may stand for a number.
    """
    carriers: list[Tensor] = []
    found: list[Any] = []
    if kwargs:
        found += kwargs
        args = (*args, *kwargs.values())
    for value in args:
        kind = type(value)
        if kind in PLAIN:
            found.append(value if by_values else None)
        elif kind in _TENSORS or isinstance(value, Tensor):
            if value.requires_grad:
                carriers.append(value)
                found.append(CARRIER)
            elif large and not (value.numel() > 1 and value.is_contiguous()):
                return [], None
            else:
                found.append(_CONSTANT)
        elif kind is tuple or kind is list:
            inner, inside = sketch(value, {}, by_values, large)
            if inside is None:
                return [], None
            carriers += inner
            found.append(inside)
        elif by_values or kind not in _NO_TENSORS:
            return [], None
        else:
            found.append(None)
    return carriers, tuple(found)
