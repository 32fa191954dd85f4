"""Slopes of elementwise functions: what the identity rule multiplies gradients with in the gradient formulation."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd.numerics import stabilize
from ..ops import Family
from ..ops.slopes import (
    CLOSED,
    CLOSED_WITH_BIAS,
    OPAQUE,
    OWN_SLOPE,
    function_of_module,
    gelu,
    limited,
    power,
    softplus,
)
from .base import Call
from .expansion import Expansion, expand_function, expand_module


class Slope(NamedTuple):
    """``(f(x) - f(a)) / (x - a)`` as a function of saved tensors."""

    factor: Callable[..., Tensor]
    saved: tuple[Tensor, ...]
    has_bias: bool = False
    """Whether a part of f(x) is constant, so that not all of the relevance passes."""


def name_of_function(call: Call) -> str:
    """The name of the elementwise function that is called; empty if it is not known."""
    if call.module is not None:
        return function_of_module(type(call.module))
    if call.op is None or (call.op.family is Family.STATISTIC and _raises_a_constant(call)):
        return ""
    return call.op.name


def _raises_a_constant(call: Call) -> bool:
    """Whether this is ``b ** x``, an exponential function, and no power of x."""
    exponent = call.kwargs.get("exponent", call.args[1] if len(call.args) > 1 else None)
    return isinstance(exponent, Tensor) and exponent.requires_grad


def has_own_slope(call: Call) -> bool:
    """Whether the function's own derivative is f(x) / x everywhere."""
    return name_of_function(call) in OWN_SLOPE


def slope_of(call: Call, x: Tensor, z: Tensor, *, whole: bool = False) -> Slope:
    """The slope of ``z = f(x)`` from its point of expansion to x.

    Args:
        call: the call of f.
        x: its input.
        z: its output.
        whole: whether f(0) is left out, so that the slope is f(x) / x.
    """
    name = name_of_function(call)
    if name in CLOSED_WITH_BIAS and not whole:
        return Slope(_with_options(CLOSED_WITH_BIAS[name], name, call), (x,), has_bias=True)
    closed = _through_zero(name, call, x)
    if closed is not None:
        return closed
    expansion = None if name in CLOSED_WITH_BIAS else expansion_of(call, x, z)
    if expansion is None:
        return Slope(ratio, (x, z))
    at, value, slope = expansion
    if whole or not expansion.has_bias:
        known = isinstance(slope, float) and not expansion.has_bias
        return Slope(partial(ratio, limit=slope if known else None), (x, z))
    if isinstance(value, Tensor):
        return Slope(partial(secant, at), (x, z, value, slope), has_bias=True)
    return Slope(partial(secant, at, value=value, slope=slope), (x, z), has_bias=True)


def _with_options(factor: Callable[..., Tensor], name: str, call: Call) -> Callable[..., Tensor]:
    """A closed form with the arguments that the call gives it."""
    if name != "softplus":
        return partial(factor)
    if isinstance(call.module, nn.Softplus):
        return partial(softplus, beta=call.module.beta, threshold=call.module.threshold)
    given = dict(zip(("beta", "threshold"), call.args[1:], strict=False))
    return partial(softplus, **given, **{k: v for k, v in call.kwargs.items() if k in ("beta", "threshold")})


def _through_zero(name: str, call: Call, x: Tensor) -> Slope | None:
    """The slope f(x) / x in closed form, if there is one."""
    if name == "gelu":
        module_form = getattr(call.module, "approximate", "none")
        given = call.args[1] if len(call.args) > 1 and call.module is None else module_form
        return Slope(partial(gelu, approximate=call.kwargs.get("approximate", given)), (x,))
    if name in ("pow", "float_power"):
        exponent = call.kwargs.get("exponent", call.args[1] if len(call.args) > 1 else 1)
        if isinstance(exponent, Tensor):
            return Slope(power, (x, exponent))
        return Slope(partial(power, exponent=exponent), (x,))
    if name == "sqrt":
        return Slope(partial(power, exponent=0.5), (x,))
    if name == "xielu":
        return Slope(_xielu, (x, *(getattr(call.module, part) for part in ("alpha_p", "alpha_n", "beta"))))
    return Slope(partial(CLOSED[name]), (x,)) if name in CLOSED else None


def expansion_of(call: Call, x: Tensor, z: Tensor) -> Expansion | None:
    """The point at which a function without a closed form is expanded; None if there is none, or it is unknown."""
    if call.module is not None:
        return expand_module(call.module, x, z) if len(call.args) == 1 and not call.kwargs else None
    if call.op is None or call.function is None or call.op.name in OPAQUE:
        return None
    if call.op.family not in (Family.ACTIVATION, Family.STATISTIC):
        return None
    return expand_function(call.function, call.args, call.kwargs, x)


def _xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor) -> Tensor:
    """``softplus(alpha_p) x + beta`` where x > 0, else ``(expm1(x) / x - 1) (beta + softplus(alpha_n)) + beta``.

    Source: Huang 2024 (arXiv:2411.13010), eq. 5.
    """
    below = limited(torch.expm1, 1.0, x.clamp(max=0)) - 1
    return torch.where(x > 0, F.softplus(alpha_p) * x, below * (beta + F.softplus(alpha_n))) + beta


def secant(at: float, x: Tensor, z: Tensor, value: Any, slope: Any) -> Tensor:
    """``(z - value) / (x - at)``, near `at` the derivative there; 0 where z is 0, which has nothing to pass on.

    Where x is nearer to `at` than the square root of the machine epsilon, the difference of z and value has lost half
    of its digits, and the derivative is as exact.
    """
    z = z.reshape(x.shape)
    step = x - at if at else x
    near = step.abs() < torch.finfo(x.dtype).eps ** 0.5
    found = (z - value) / torch.where(near, 1, step)
    return torch.where(near, slope, found.masked_fill(z == 0, 0)).to(x.dtype)


def ratio(x: Tensor, z: Tensor, *, limit: float | None = None) -> Tensor:
    """The ratio z / x for z = f(x), finite everywhere.

    Where x is below the resolution and z is not small with it, f(0) is not 0 (sigmoid, softplus, exp): there x is
    stabilized, and what it cannot explain is absorbed. `limit` is f'(0) for functions with f(0) = 0, if it is known.
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
