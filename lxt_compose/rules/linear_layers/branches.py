"""Computations on layers that depend on the data: in a trace the choice is a part of the graph.

A rule may compute something in a cheaper way where its data allow it. In eager mode it looks at the data; a graph holds
both ways, and takes one of them when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...autograd.numerics import may_write_over
from ...torch_internals import is_batched, storage_of
from ...torch_internals.traces import cond, has_symbolic_shape, is_traced
from .layer import Layer
from .signs import is_never_negative
from .weight_parts import Given, Part, whole

_choices: ContextVar[bool] = ContextVar("choices", default=True)
Condition = bool | Tensor
"""Whether something holds; a tensor of one element in a trace."""
Way = Callable[..., Tensor]


def is_nonnegative(x: Tensor) -> Condition:
    """Return whether no element is negative; NaN is not.

    In a trace it is True where the graph itself shows it, which asks for no choice.
    """
    if is_traced():
        return (_choices.get() and is_never_negative(x)) or ~(x < 0).any()
    low = float(x.amin()) if x.numel() else 0.0
    return low >= 0 or (low != low and not bool((x < 0).any()))


def is_nowhere(excess: Tensor, r: Tensor) -> Condition:
    """Return whether `excess` is 0 wherever there is relevance; takes its memory.

    For several slots at a time (``is_grads_batched``) nothing can depend on values, so the answer is no.
    """
    if is_batched(r):
        return False
    if is_traced():
        return (excess * r == 0).all()
    if not excess.numel():
        return True
    if not may_write_over(r):
        return False
    low, high = excess.mul_(r).aminmax()
    return bool(low == 0 and high == 0)


def choose(
    condition: Condition, cheap: Way, general: Way, layer: Layer, tensors: Sequence[Tensor], parts: Iterable[Part]
) -> Tensor:
    """Return ``cheap(layer, *tensors)`` if the condition holds, and else ``general(layer, *tensors)``.

    Args:
        condition: what decides.
        cheap: a function of the layer and of all tensors that it uses; it may not change one of them in a trace.
        general: the same; right whether the condition holds or not.
        layer: the layer.
        tensors: the tensors.
        parts: the parts of the weight that either of them uses.
    """
    if isinstance(condition, bool):
        return (cheap if condition else general)(layer, *tensors)
    if layer.back is None or not _choices.get() or any(map(is_batched, tensors)):
        # No branch of a graph can differentiate, or be differentiated twice.
        return general(layer, *tensors)
    handed = _Handed(layer, parts)

    def among(way: Way) -> Way:
        return lambda *given: way(*handed.taken(given))

    try:
        return cond(condition, among(cheap), among(general), handed.beside(tensors))
    except RuntimeError:
        if not any(map(has_symbolic_shape, tensors)):
            raise
        return general(layer, *tensors)  # shapes are formulas that torch cannot compare between branches


def choose_among(
    ways: Sequence[tuple[Condition, Way]], layer: Layer, tensors: Sequence[Tensor], parts: Iterable[Part]
) -> Tensor:
    """Return the result of the function whose condition holds, in the shape of the second tensor; the last is general.

    In a graph these are choices one after the other, since compilers support no nested ones: each gives its result or
    zeros, and they are added.

    Args:
        ways: conditions, of which exactly one holds, and functions as for :func:`choose`.
        layer: the layer.
        tensors: the tensors.
        parts: the parts of the weight that they use.
    """
    plain = [way for condition, way in ways if condition is True]
    if plain:
        return plain[0](layer, *tensors)
    ways = [(condition, way) for condition, way in ways if condition is not False]
    if len(ways) == 1 or layer.back is None or not _choices.get() or any(map(is_batched, tensors)):
        return ways[-1][1](layer, *tensors)
    found = [choose(condition, way, _nothing, layer, tensors, parts) for condition, way in ways]
    return sum(found[1:], found[0])


def _nothing(layer: Layer, *tensors: Tensor) -> Tensor:
    return torch.zeros_like(tensors[1])


def both(first: Condition, second: Callable[[], Condition]) -> Condition:
    """Return whether both hold; the second is computed only if the first may hold."""
    if isinstance(first, bool):
        return second() if first else False
    other = second()
    if isinstance(other, bool):
        return first if other else False
    return first & other


def opposite(condition: Condition) -> Condition:
    """Return whether a condition does not hold."""
    return not condition if isinstance(condition, bool) else ~condition


def tensors_among(*conditions: Condition) -> list[Tensor]:
    """Return the conditions that are tensors, which the branches of a graph take as arguments."""
    return [condition for condition in conditions if isinstance(condition, Tensor)]


@contextmanager
def without_choices() -> Iterator[None]:
    """Make graphs that are traced here take the branches that are always right, and hold no choice."""
    token = _choices.set(False)
    try:
        yield
    finally:
        _choices.reset(token)


def without_bias(layer: Layer, x: Tensor, z: Tensor) -> Tensor:
    """Return the output z of a layer for x, with the bias taken off."""
    if layer.offset is None or not z.numel():
        return z
    rest = z - layer.offset
    # Too few digits are left of an output that is nearly all bias, and in half precision of any output.
    if layer.is_rounded:
        return layer.product(x, whole)
    enough = rest.abs().amax() >= layer.offset.abs().amax() / 128
    return choose(
        enough if is_traced() else bool(enough),
        lambda layer, x, rest: rest.clone() if is_traced() else rest,
        lambda layer, x, rest: layer.product(x, whole),
        layer, (x, rest), (whole,),
    )  # fmt: skip


class _Handed:
    """The tensors of a layer, as they are handed to the branches of a graph; no two share memory."""

    def __init__(self, layer: Layer, parts: Iterable[Part]) -> None:
        self._layer, self._parts = layer, list(dict.fromkeys(parts))
        self._fields = [name for name in ("weight", "bias", "offset") if getattr(layer, name) is not None]
        named = [*(getattr(layer, name) for name in self._fields), *(layer.part(part) for part in self._parts)]
        owners: dict[int, int] = {}
        self.tensors: list[Tensor] = []
        self._places: list[tuple[int, torch.Size | None]] = []
        """For each of them where it is handed on, and its shape if it is a view of what is there: the offset."""
        for tensor in named:
            place = owners.setdefault(storage_of(tensor), len(self.tensors))
            if place == len(self.tensors):
                self.tensors.append(tensor)
            self._places.append((place, None if tensor is self.tensors[place] else tensor.shape))

    def beside(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the tensors of the layer and others; those that share memory are copied."""
        found, met = list(self.tensors), set(map(storage_of, self.tensors))
        for tensor in tensors:
            found.append(tensor.clone() if storage_of(tensor) in met else tensor)
            met.add(storage_of(tensor))
        return found

    def taken(self, given: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """Return the layer made of what a branch was given, and the rest of that."""
        named = [given[place] if shape is None else given[place].reshape(shape) for place, shape in self._places]
        fields: dict[str, Any] = dict(zip(self._fields, named, strict=False))
        parts = dict(zip(self._parts, named[len(self._fields) :], strict=True))
        layer = replace(self._layer, version=fields["weight"]._version, parts=Given(parts), **fields)
        return (layer, *given[len(self.tensors) :])
