"""Ways to compute the same that depend on the data, for layers: in a trace the choice is a part of the graph.

A rule may take a cheaper way where its data allow it. Which way that is can be asked while it runs, but not while it is
written down as a graph: there both ways are, and the graph takes one of them when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...autograd.numerics import may_write_over
from ...torch_internals import is_batched
from ...torch_internals.traces import cond, has_symbolic_shape, is_traced
from .layer import Layer
from .weight_parts import Given, Part, whole

_choices: ContextVar[bool] = ContextVar("choices", default=True)
Condition = bool | Tensor
"""Whether something holds; a tensor of one element in a trace."""
Way = Callable[..., Tensor]


def is_nonnegative(x: Tensor) -> Condition:
    """Whether no element is negative."""
    if is_traced():
        return (x >= 0).all()
    return not x.numel() or bool(x.amin() >= 0)


def is_nowhere(excess: Tensor, r: Tensor) -> Condition:
    """Whether `excess` is 0 wherever there is relevance; takes its memory.

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
    """Return ``cheap(layer, *tensors)`` if the condition holds, else ``general(layer, *tensors)``.

    Args:
        condition: what decides.
        cheap: a function of the layer and of all tensors that it uses; it may not change one of them in a trace.
        general: the same; right whether the condition holds or not.
        layer: the layer.
        tensors: the tensors.
        parts: the parts of the weight that either of them asks for.
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
        return cond(condition, among(cheap), among(general), (*handed.tensors, *tensors))
    except RuntimeError:
        if not any(map(has_symbolic_shape, tensors)):
            raise
        return general(layer, *tensors)  # shapes are formulas that torch cannot compare between branches


@contextmanager
def without_choices() -> Iterator[None]:
    """A context in which graphs that are written down take the ways that are always right, and hold no choice."""
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
    # Of an output that is nearly all bias, and in half precision of any, too few digits are left.
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
    """The tensors of a layer, as they are handed to the branches of a graph."""

    def __init__(self, layer: Layer, parts: Iterable[Part]) -> None:
        self._layer, self._parts = layer, list(dict.fromkeys(parts))
        self._fields = [name for name in ("weight", "bias", "offset") if getattr(layer, name) is not None]
        named = [*(getattr(layer, name) for name in self._fields), *(layer.part(part) for part in self._parts)]
        self.tensors: list[Tensor] = list({id(tensor): tensor for tensor in named}.values())
        places = {id(tensor): place for place, tensor in enumerate(self.tensors)}
        self._places = [places[id(tensor)] for tensor in named]

    def taken(self, given: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """Return the layer made of what a branch was given, and the rest of that."""
        named = [given[place] for place in self._places]
        fields: dict[str, Any] = dict(zip(self._fields, named, strict=False))
        parts = dict(zip(self._parts, named[len(self._fields) :], strict=True))
        layer = replace(self._layer, version=fields["weight"]._version, parts=Given(parts), **fields)
        return (layer, *given[len(self.tensors) :])
