"""Functions of one variable, represented by their values at some points: the functions that chains compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..autograd.marks import Values
from ..autograd.trees import PLAIN, plain
from ..ops import Family, Op
from ..ops.traits import Argument
from ..rules.defaults import raises
from ..rules.expansion import Expansion
from ..torch_internals import modes_off
from ..torch_internals.readings import values_of

_STEP = 1e-5
_TINY = 1e-15
_NEAR = (0.0, _STEP / 100, _STEP, 2 * _STEP)
_FAR = (1e60, 1e30, 200.0, 100.0, 40.0, 3.0, 1.0)
POINTS: Values = (*_NEAR, *(-x for x in _FAR), *reversed(_FAR))
"""The points at which functions are evaluated."""
_ONE = POINTS.index(1.0)


class Followed(Protocol):
    """A function and its operation."""

    op: Op | None

    @property
    def function(self) -> Callable[..., Any]:
        """The function."""


@lru_cache(maxsize=4096)
def is_affine(curve: Values) -> bool:
    """Return whether a function is ``k x + b``."""
    b, k = curve[0], curve[_ONE] - curve[0]
    return all(abs(z - b - k * x) <= 1e-9 * (abs(b) + abs(k * x)) for x, z in zip(POINTS, curve, strict=True))


@lru_cache(maxsize=4096)
def ratio_of(curve: Values) -> float | None:
    """Return k for the function ``k x``, k not 0; None for any other."""
    return curve[_ONE] or None if not curve[0] and is_affine(curve) else None


@lru_cache(maxsize=4096)
def is_finite(values: Values) -> bool:
    """Return whether a function is finite for inputs up to 100; beyond exponential functions overflow."""
    return all(isfinite(z) for x, z in zip(POINTS, values, strict=True) if abs(x) <= 100)


def inputs_of(curve: Values) -> Values:
    """Return the values far below 0, at 0, and far above, for :func:`~lxt_compose.autograd.marks.gate_of`."""
    far = len(_NEAR)
    for first in (far, far + 2):  # at the furthest points exponential functions overflow
        ends = curve[first], curve[first + 1], curve[0], curve[far - 2 - first], curve[far - 1 - first]
        if all(map(isfinite, ends)):
            return ends
    return ends


@lru_cache(maxsize=4096)
def expansion_of(curve: Values, ratio: float) -> Expansion | None:
    """Expand a function of x in ``ratio * x`` at 0; None if it is 0 and has no slope there."""
    value, nearest, near, far = curve[:4]
    slope = (4 * near - far - 3 * value) / (2 * _STEP)
    nearest = (nearest - value) / (_STEP / 100)
    smooth = abs(nearest - slope) <= 1e-3 + 1e-2 * abs(slope)  # False where one is not finite
    return Expansion(0.0, value, slope / ratio) if smooth or (value and isfinite(slope)) else None


class _Carrier(NamedTuple):
    """Stands for a carrier among arguments."""

    place: int


class Condition(NamedTuple):
    """An argument that is a comparison of the source, as 0 and 1."""

    values: Values


class Number(NamedTuple):
    """An argument that is a tensor of one number."""

    value: float


_OTHER = object()
"""Stands for an argument that is no number and no carrier."""


Find = Callable[[Tensor], Values | float | None]
"""From a comparison to what it is as a function of the source, from another constant to its number; else None."""


class _Reader(NamedTuple):
    """Reads the arguments of a call."""

    op: Op | None
    carriers: Sequence[Tensor]
    find: Find
    held: list[bool]

    def __call__(self, value: Any, place: int | str) -> Any:
        if not isinstance(value, Tensor):
            number = plain(value)
            return number if type(number) in PLAIN else _OTHER
        if value.requires_grad:
            self.held.append(self.op is not None and place in self.op.held)
            return _Carrier(len(self.held) - 1)
        if value.dtype is torch.bool:
            values = self.find(value)
            return Condition(values) if isinstance(values, tuple) else _OTHER
        if value.is_complex() or value.layout is not torch.strided or not _broadcasts(value, self.carriers[0]):
            return _OTHER
        number = self.find(value)
        return Number(number) if isinstance(number, (int, float)) else _OTHER


def _broadcasts(value: Tensor, x: Tensor) -> bool:
    """Return whether a constant leaves the shape of x as it is."""
    if value.numel() == 1:
        return value.dim() <= x.dim()
    sizes = zip(reversed(value.shape), reversed(x.shape), strict=False)
    return value.dim() <= x.dim() and all(size in (1, own) for size, own in sizes)


def _is_statistic(op: Op | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if op is None or op.family is not Family.STATISTIC:
        return False
    power = op.traits.exponent
    return power is None or (isinstance(power, Argument) and not raises(op, tuple(args), dict(kwargs)))


class Function(NamedTuple):
    """A function of carriers alone: its other arguments are numbers, names and the like.

    Attributes:
        held: for each carrier, whether the default rule holds it constant: a divisor.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    held: tuple[bool, ...]
    statistic: bool

    @classmethod
    def of(
        cls, info: Followed, args: Sequence[Any], kwargs: Mapping[str, Any], carriers: Sequence[Tensor], find: Find
    ) -> Function | None:
        """Return the function that a call computes; None where another argument is a tensor of several elements."""
        read = _Reader(info.op, carriers, find, [])
        given = [value if type(value) in PLAIN else read(value, place) for place, value in enumerate(args)]
        named = [(name, value if type(value) in PLAIN else read(value, name)) for name, value in kwargs.items()]
        if _OTHER in given or (named and any(value is _OTHER for _, value in named)):
            return None
        return cls(info.function, tuple(given), tuple(named), tuple(read.held), _is_statistic(info.op, args, kwargs))

    @property
    def conditional(self) -> bool:
        """Whether a comparison of the source is among its arguments."""
        return any(isinstance(value, Condition) for value in (*self.args, *(value for _, value in self.kwargs)))

    @property
    def puts_in(self) -> bool:
        """Whether it may put in a number other than 0."""
        given = (*self.args, *(value for _, value in self.kwargs))
        numbers = (value.value if isinstance(value, Number) else value for value in given)
        return any(isinstance(value, (int, float)) and value for value in numbers)

    @property
    def divides(self) -> bool:
        """Whether it is a number over its only carrier, or a negative power."""
        return self.statistic or self.held == (True,)

    def alone(self) -> Values | None:
        """Return the values of the function of one carrier, where that is the source."""
        return _alone(self)

    def __call__(self, curves: Sequence[Values]) -> Values | None:
        """Return the curve that it makes of curves; None if it cannot be evaluated."""
        return _evaluate(self, tuple(curves))


@lru_cache(maxsize=4096)
def _alone(call: Function) -> Values | None:
    return None if call.divides else _evaluate(call, (POINTS,))


@lru_cache(maxsize=4096)
def _evaluate(call: Function, curves: tuple[Values, ...]) -> Values | None:
    with values_of(), torch.no_grad(), modes_off():
        points = [torch.tensor(curve, dtype=torch.float64, device="cpu") for curve in curves]

        def given(value: Any) -> Any:
            if isinstance(value, Condition):
                return torch.tensor(value.values, device="cpu") > 0
            if isinstance(value, Number):
                return torch.tensor(value.value, dtype=torch.float64, device="cpu")
            return points[value.place] if isinstance(value, _Carrier) else value

        try:
            after = call.function(*map(given, call.args), **{name: given(value) for name, value in call.kwargs})
        except Exception:  # other arguments than numbers may ask for other shapes
            return None
        if not isinstance(after, Tensor) or after.shape != points[0].shape:
            return None
        if not after.is_floating_point() and after.dtype is not torch.bool:
            return None
        values = after.double().tolist()
    if abs(values[0]) < _TINY:
        values[0] = 0.0
    return tuple(values)
