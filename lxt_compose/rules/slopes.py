"""Slopes of elementwise functions: what the identity rule multiplies gradients with in the gradient formulation."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autograd.numerics import stabilize
from ..ops import Argument, Family
from ..ops.slopes import UNKNOWN, Curve, curve_of, curve_of_module
from .base import Call
from .expansion import Expansion, expand_function, expand_module


class Slope(NamedTuple):
    """``(f(x) - f(a)) / (x - a)`` as a function of saved tensors."""

    factor: Callable[..., Tensor]
    saved: tuple[Tensor, ...]
    has_bias: bool = False
    """Whether a part of f(x) is constant, so that not all of the relevance passes."""


def curve_called(call: Call) -> Curve:
    """Return the slopes and options of the elementwise function that is called."""
    if call.curve is None:
        if call.module is not None:
            call.curve = curve_of_module(type(call.module))
        else:
            call.curve = UNKNOWN if call.op is None or _raises_a_constant(call) else curve_of(call.op)
    found: Curve = call.curve
    return found


def _raises_a_constant(call: Call) -> bool:
    """Return whether this is ``b ** x``, an exponential function, and no power of x."""
    exponent = None if call.op is None else call.op.traits.exponent
    if not isinstance(exponent, Argument):
        return False
    given = exponent.of(call.args, call.kwargs)
    return isinstance(given, Tensor) and given.requires_grad


def slope_of(call: Call, x: Tensor, z: Tensor, *, whole: bool = False) -> Slope:
    """Return the slope of ``z = f(x)`` from its point of expansion to x.

    Args:
        call: the call of f.
        x: its input.
        z: its output.
        whole: whether f(0) is left out, so that the slope is f(x) / x.
    """
    curve = curve_called(call)
    if curve.slope is not None and not (curve.has_bias and whole):
        return _closed(curve.slope, curve, call, x)
    expansion = None if curve.has_bias else expansion_of(call, x, z)
    if expansion is None:
        return Slope(ratio, (x, z))
    at, value, slope = expansion
    if whole or not expansion.has_bias:
        known = isinstance(slope, float) and not expansion.has_bias
        return Slope(partial(ratio, limit=slope if known else None), (x, z))
    if isinstance(value, Tensor):
        return Slope(partial(secant, at), (x, z, value, slope), has_bias=True)
    return Slope(partial(secant, at, value=value, slope=slope), (x, z), has_bias=True)


def _closed(slope: Callable[..., Tensor], curve: Curve, call: Call, x: Tensor) -> Slope:
    """Return a closed form with the options that the call, or its module, gives it; tensors among them are saved."""
    if not curve.options:
        return Slope(slope, (x,), curve.has_bias)
    if call.module is not None:
        options = {name: getattr(call.module, name, None) for _, name, *_ in curve.options}
    else:
        options = {option.keyword: option.of(call.args, call.kwargs) for option in curve.options}
    tensors = {name: value for name, value in options.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in options.items() if value is not None and name not in tensors}
    factor = partial(slope, **numbers)
    if tensors:
        factor = partial(_with_tensors, factor, tuple(tensors))
    return Slope(factor, (x, *tensors.values()), curve.has_bias)


def _with_tensors(slope: Callable[..., Tensor], names: tuple[str, ...], x: Tensor, *tensors: Tensor) -> Tensor:
    return slope(x, **dict(zip(names, tensors, strict=True)))


def expansion_of(call: Call, x: Tensor, z: Tensor) -> Expansion | None:
    """Return the point at which a function without a closed form is expanded.

    None if there is none, or it is unknown.
    """
    if call.module is not None:
        return expand_module(call.module, x, z) if len(call.args) == 1 and not call.kwargs else None
    if call.op is None or call.function is None or curve_of(call.op).opaque:
        return None
    if call.op.family not in (Family.ACTIVATION, Family.STATISTIC):
        return None
    return expand_function(call.function, call.args, call.kwargs, x)


def secant(at: float, x: Tensor, z: Tensor, value: Any, slope: Any) -> Tensor:
    """Return ``(z - value) / (x - at)``, near `at` the derivative there; 0 where z is 0 and has no relevance.

    Where x is nearer to `at` than the square root of the machine epsilon, the difference of z and value has lost half
    of its digits, and the derivative is as exact.
    """
    z = z.reshape(x.shape)
    step = x - at if at else x
    near = step.abs() < torch.finfo(x.dtype).eps ** 0.5
    found = (z - value) / torch.where(near, 1, step)
    return torch.where(near, slope, found.masked_fill(z == 0, 0)).to(x.dtype)


def ratio(x: Tensor, z: Tensor, *, limit: float | None = None) -> Tensor:
    """Return the ratio z / x for z = f(x), finite everywhere.

    Where x is below the resolution and z is not as small, f(0) is not 0 (sigmoid, softplus, exp): there x is
    stabilized, and the rest is absorbed. `limit` is f'(0) for functions with f(0) = 0, if it is known.
    """
    info = torch.finfo(x.dtype)
    z = z.reshape(x.shape)
    size = x.abs()
    small = size < info.resolution
    through_zero = z.abs() <= 4 * size  # f(x) = O(x)
    divisor = torch.where(small & ~through_zero, stabilize(x, 0.0), x)
    zero = size < info.tiny
    divisor = torch.where(zero, stabilize(x, 0.0), divisor)
    slope = z / divisor
    return slope if limit is None else torch.where(zero & through_zero, slope.new_full((), limit), slope)
