"""Functions of one variable, as chains compute them, represented by their values at some points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
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
from .forms import CARRIER, Form

_STEP = 1e-5
_TINY = 1e-15
_NEAR = (0.0, _STEP / 100, _STEP, 2 * _STEP)
_FAR = (1e60, 1e30, 2e4, 5e3, 1e3, 200.0, 100.0, 40.0, 10.0, 3.0, 1.0)
_POINTS: Values = (*_NEAR, *(-x for x in _FAR), *reversed(_FAR))
"""The points at which functions are evaluated."""
_ONE = _POINTS.index(1.0)


class Followed(Protocol):
    """A function, its operation, and whether that copies its input."""

    op: Op | None
    copies: bool

    @property
    def function(self) -> Callable[..., Any]:
        """The function."""


class Curve:
    """A function, known by its values at some points; its properties are computed once."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self.at_zero = values[0]

    @cached_property
    def is_affine(self) -> bool:
        """Whether it is ``k x + b``."""
        b, k = self.values[0], self.values[_ONE] - self.values[0]
        near = zip(_POINTS, self.values, strict=True)
        return all(abs(z - b - k * x) <= 1e-9 * (abs(b) + abs(k * x)) for x, z in near)

    @cached_property
    def is_line(self) -> bool:
        """Whether it is ``k x + b``, k not 0."""
        return self.is_affine and self.values[_ONE] != self.values[0]

    @cached_property
    def ratio(self) -> float | None:
        """The number k of the function ``k x``, k not 0; None for any other."""
        return self.values[_ONE] or None if not self.at_zero and self.is_affine else None

    @cached_property
    def is_finite(self) -> bool:
        """Whether it is finite for inputs up to 100; beyond exponential functions overflow."""
        return all(isfinite(z) for x, z in zip(_POINTS, self.values, strict=True) if abs(x) <= 100)

    @cached_property
    def inputs(self) -> Values:
        """The values far below 0, at 0, and far above, for :func:`~lxt_compose.autograd.marks.gate_of`."""
        far, z = len(_NEAR), self.values
        # Where exponential functions overflow, the furthest points at which they do not; of exp(x / 7) these are others
        # than of exp(x). Points differ by a factor of at most 5, so that a sigmoid has its limits at both to 1e-9.
        for first in range(far, far + len(_FAR) - 1):
            ends = z[first], z[first + 1], z[0], z[far - 2 - first], z[far - 1 - first]
            if all(map(isfinite, ends)):
                return ends
        return ends


POINTS = Curve(_POINTS)
"""The function x."""


@lru_cache(maxsize=4096)
def expansion_of(curve: Curve, ratio: float) -> Expansion | None:
    """Expand a function of x in ``ratio * x`` at 0; None if it is 0 and has no slope there."""
    value, nearest, near, far = curve.values[:4]
    slope = (4 * near - far - 3 * value) / (2 * _STEP)
    nearest = (nearest - value) / (_STEP / 100)
    smooth = abs(nearest - slope) <= 1e-3 + 1e-2 * abs(slope)  # False where one is not finite
    return Expansion(0.0, value, slope / ratio) if smooth or (value and isfinite(slope)) else None


class Condition(NamedTuple):
    """An argument that is a comparison of the source, as 0 and 1."""

    curve: Curve


class Number(NamedTuple):
    """An argument that is a tensor of one number."""

    value: float


_NO_TENSORS = PLAIN | {Condition, Number}
Find = Callable[[Tensor], Curve | float | None]
"""Maps a comparison to a function of the source, and a constant tensor of one number to the number; else gives None."""


def _with_constants(args: Sequence[Any], kwargs: Mapping[str, Any], x: Tensor, find: Find) -> Form | None:
    """Return the form of a call, with constant tensors by what they stand for; None if one stands for nothing known."""
    form: list[Any] = [len(args), *kwargs]
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            given = CARRIER if value.requires_grad else _constant(value, x, find)
        else:
            given = plain(value)
        if given is not CARRIER and type(given) not in _NO_TENSORS:
            return None
        form.append(given)
    return tuple(form)


def _constant(value: Tensor, x: Tensor, find: Find) -> Any:
    """Return what stands for a constant; itself where that is not known."""
    if value.dtype is torch.bool:
        curve = find(value)
        return Condition(curve) if isinstance(curve, Curve) else value
    if value.is_complex() or value.layout is not torch.strided or not _broadcasts(value, x):
        return value
    number = find(value)
    return Number(number) if isinstance(number, (int, float)) else value


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


class Function:
    """A function of carriers alone: its other arguments are numbers, names and the like. Equal calls share one.

    Attributes:
        held: for each carrier, whether the default rule holds it constant: a divisor.
        divides: whether it is a number over its only carrier, or a negative power.
        conditional: whether a comparison of the source is among its arguments.
        puts_in: whether it may put in a number other than 0.
    """

    def __init__(self, info: Followed, args: Sequence[Any], kwargs: Mapping[str, Any], form: Form) -> None:
        given = form[1 + len(kwargs) :]
        self.function = info.function
        self.args, self.kwargs = given[: len(args)], dict(zip(kwargs, given[len(args) :], strict=True))
        places = [place for place, value in (*enumerate(self.args), *self.kwargs.items()) if value is CARRIER]
        self.held = tuple(info.op is not None and place in info.op.held for place in places)
        self.divides = self.held == (True,) or _is_statistic(info.op, args, kwargs)
        self.conditional = any(isinstance(value, Condition) for value in given)
        numbers = (value.value if isinstance(value, Number) else value for value in given)
        self.puts_in = any(isinstance(value, (int, float)) and value for value in numbers)

    @classmethod
    def of(
        cls, info: Followed, args: Sequence[Any], kwargs: Mapping[str, Any], x: Tensor, form: Form | None, find: Find
    ) -> Function | None:
        """Return the function that a call computes; None where another argument is a tensor of several elements.

        Args:
            info: what is called.
            args: its arguments.
            kwargs: its keyword arguments.
            x: the first carrier among them.
            form: the form of the call, if it has one.
            find: finds comparisons of the source.
        """
        form = form or _with_constants(args, kwargs, x, find)
        if form is None:
            return None
        found = _functions.get((info.function, form))
        if found is None:
            if len(_functions) > _LARGEST_CACHE:
                _functions.clear()
            found = _functions[info.function, form] = cls(info, args, kwargs, form)
        return found

    @cached_property
    def alone(self) -> Curve | None:
        """The function of one carrier, where that is the source."""
        return None if self.divides else self([POINTS])

    def __call__(self, curves: Sequence[Curve]) -> Curve | None:
        """Return the curve that it makes of curves; None if it cannot be evaluated."""
        return _evaluate(self, *curves)


_LARGEST_CACHE = 4096
_functions: dict[tuple[Any, Form], Function] = {}


@lru_cache(maxsize=_LARGEST_CACHE)
def _evaluate(call: Function, *curves: Curve) -> Curve | None:
    with values_of(), torch.no_grad(), modes_off():
        points = [torch.tensor(curve.values, dtype=torch.float64, device="cpu") for curve in curves]
        left = iter(points)

        def given(value: Any) -> Any:
            if isinstance(value, Condition):
                return torch.tensor(value.curve.values, device="cpu") > 0
            if isinstance(value, Number):
                return torch.tensor(value.value, dtype=torch.float64, device="cpu")
            return next(left) if value is CARRIER else value

        try:
            after = call.function(*map(given, call.args), **{name: given(value) for name, value in call.kwargs.items()})
        except Exception:  # arguments that are no numbers may need other shapes
            return None
        if not isinstance(after, Tensor) or after.shape != points[0].shape:
            return None
        if not after.is_floating_point() and after.dtype is not torch.bool:
            return None
        values = after.double().tolist()
    if abs(values[0]) < _TINY:
        values[0] = 0.0
    return Curve(tuple(values))
