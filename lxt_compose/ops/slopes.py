"""What is known of elementwise functions: secant slopes ``(f(x) - f(a)) / (x - a)`` in closed form, and f(0).

The point a is 0, or another one if f is not finite there: 1 for logarithms, 1/2 for logit. No closed form loses digits
    near a.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .families import Op
from .traits import Argument

_OWN_SLOPE = frozenset({"relu", "leaky_relu", "abs", "prelu", "rrelu", "positive", "neg"})
"""Piecewise linear with f(0) = 0 and no other kink: f(x) / x is the derivative, which autograd computes anyway."""

_THROUGH_ZERO = _OWN_SLOPE | frozenset(
    """
    silu gelu mish softsign hardswish tanh sin tan asin atan sinh asinh atanh erf expm1 log1p relu6 elu selu celu
    hardshrink softshrink tanhshrink pow float_power square sqrt
""".split()
)
"""Functions with f(0) = 0 whatever their arguments; among powers those of a tensor."""

_OPAQUE = frozenset(
    """
    rrelu copysign nextafter frac remainder rremainder fmod fake_quantize_per_tensor_affine
    fake_quantize_per_channel_affine fused_moving_avg_obs_fake_quant
""".split()
)
"""Step functions, random ones, and those that change their arguments: they are evaluated at x alone."""


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return Phi(x), which is ``gelu(x) / x``, by torch's own kernel, which is several times faster than erf.

    x is moved away from 0 by less than its rounding, so that the quotient is 1/2 there.
    """
    x = torch.copysign(x.new_full((), 4 * torch.finfo(x.dtype).tiny), x).add_(x)
    return F.gelu(x, approximate=approximate).div_(x)


def limited(f: Callable[[Tensor], Tensor], limit: float, x: Tensor) -> Tensor:
    """Return f(x) / x, and its limit where x is 0 or too small to divide by."""
    tiny = x.abs() < torch.finfo(x.dtype).tiny
    one = x.new_ones(())
    return torch.where(tiny, one * limit, f(x) / torch.where(tiny, one, x))


def _erf(x: Tensor) -> Tensor:
    """Return erf, which torch rounds to 0 near 0 in bfloat16."""
    return torch.erf(x.float()).to(x.dtype) if x.dtype in (torch.float16, torch.bfloat16) else torch.erf(x)


def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """Return ``(softplus(x) - log(2) / beta) / x``, by ``log1p(expm1(beta x) / 2)`` where expm1 is not large."""
    scaled = x * beta
    bounded = torch.log1p(torch.expm1(scaled.clamp(max=1)) / 2) / beta
    large = F.softplus(x, beta, threshold) - math.log(2) / beta
    return limited(lambda _: torch.where(scaled > 1, large, bounded), 0.5, x)


def power(x: Tensor, exponent: float | Tensor) -> Tensor:
    """Return ``x ** (exponent - 1)``; 0 where that is infinite: at 0, below exponent 1."""
    found = torch.pow(x, exponent - 1)
    return found.masked_fill((x == 0) & found.isinf(), 0)


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor) -> Tensor:
    """Return ``softplus(alpha_p) x + beta`` where x > 0, else ``(expm1(x) / x - 1) (beta + softplus(alpha_n)) + beta``.

    Source: Huang 2024 (arXiv:2411.13010), eq. 5.
    """
    below = limited(torch.expm1, 1.0, x.clamp(max=0)) - 1
    return torch.where(x > 0, F.softplus(alpha_p) * x, below * (beta + F.softplus(alpha_n))) + beta


def log(base: float, x: Tensor) -> Tensor:
    """Return ``log(x) / (x - 1)`` to this base."""
    return limited(torch.log1p, 1.0, x - 1) / math.log(base)


def exp(base: float, x: Tensor) -> Tensor:
    """Return ``(base ** x - 1) / x``."""
    rate = math.log(base)
    return limited(lambda x: torch.expm1(x * rate), rate, x)


def _hardsigmoid(x: Tensor) -> Tensor:
    """Return the slope of the hard sigmoid; 0 where the output is 0, which has no relevance."""
    return torch.where(x > -3, limited(lambda x: (x / 6).clamp(-0.5, 0.5), 1 / 6, x), 0)


_CLOSED: dict[str, Callable[..., Tensor]] = {
    "silu": torch.sigmoid,
    "gelu": gelu,
    "mish": lambda x: torch.tanh(F.softplus(x)),
    "softsign": lambda x: 1 / (1 + x.abs()),
    "hardswish": lambda x: (x / 6 + 0.5).clamp(0, 1),
    "tanh": partial(limited, torch.tanh, 1.0),
    "sin": partial(limited, torch.sin, 1.0),
    "tan": partial(limited, torch.tan, 1.0),
    "asin": partial(limited, torch.asin, 1.0),
    "atan": partial(limited, torch.atan, 1.0),
    "sinh": partial(limited, torch.sinh, 1.0),
    "asinh": partial(limited, torch.asinh, 1.0),
    "atanh": partial(limited, torch.atanh, 1.0),
    "erf": partial(limited, _erf, 2 / math.sqrt(math.pi)),
    "expm1": partial(limited, torch.expm1, 1.0),
    "log1p": partial(limited, torch.log1p, 1.0),
    "relu6": partial(limited, F.relu6, 0.0),
    "identity": torch.ones_like,
    "tanh gelu": partial(gelu, approximate="tanh"),
    "fast gelu": lambda x: 0.5 * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
    "quick gelu": lambda x: torch.sigmoid(1.702 * x),
    "square": lambda x: x.clone(),
    "squared relu": F.relu,
    "sqrt": partial(power, exponent=0.5),
    "pow": power,
    "float_power": power,
    "xielu": xielu,
}  # fmt: skip
"""Functions with f(0) = 0: f(x) / x."""

_CLOSED_WITH_BIAS: dict[str, Callable[..., Tensor]] = {
    "sigmoid": partial(limited, lambda x: torch.tanh(x / 2) / 2, 0.25),
    "hardsigmoid": _hardsigmoid,
    "softplus": softplus,
    "logsigmoid": lambda x: softplus(-x),
    "exp": partial(exp, math.e),
    "exp2": partial(exp, 2.0),
    "cos": partial(limited, lambda x: -2 * torch.sin(x / 2).square(), 0.0),
    "cosh": partial(limited, lambda x: 2 * torch.sinh(x / 2).square(), 0.0),
    "acos": partial(limited, lambda x: -torch.asin(x), -1.0),
    "erfc": partial(limited, lambda x: -_erf(x), -2 / math.sqrt(math.pi)),
    "ndtr": partial(limited, lambda x: _erf(x * math.sqrt(0.5)) / 2, 1 / math.sqrt(2 * math.pi)),
    "log": partial(log, math.e),
    "log2": partial(log, 2.0),
    "log10": partial(log, 10.0),
}
"""Functions with a bias: another f(0), or none that is finite."""

_OPTIONS = {
    "gelu": (Argument(1, "approximate"),),
    "softplus": (Argument(1, "beta"), Argument(2, "threshold")),
    "pow": (Argument(1, "exponent"),),
    "float_power": (Argument(1, "exponent"),),
    "xielu": (Argument(1, "alpha_p"), Argument(2, "alpha_n"), Argument(3, "beta")),
}
"""Arguments of the function, or attributes of its module, that its closed form takes by the same keyword."""

# Modules that are one elementwise function: from where the class stands and its name to the function.
_MODULES = {
    "torch.nn.modules.activation": {
        "ReLU": "relu", "LeakyReLU": "leaky_relu", "PReLU": "prelu", "SiLU": "silu", "GELU": "gelu", "Mish": "mish",
        "Softsign": "softsign", "Hardswish": "hardswish", "Tanh": "tanh", "ReLU6": "relu6", "ELU": "elu",
        "SELU": "selu", "CELU": "celu", "Sigmoid": "sigmoid", "Hardsigmoid": "hardsigmoid", "Softplus": "softplus",
        "LogSigmoid": "logsigmoid", "RReLU": "rrelu",
    },
    "transformers.activations": {
        "GELUActivation": "gelu", "GELUTanh": "tanh gelu", "NewGELUActivation": "tanh gelu",
        "FastGELUActivation": "fast gelu", "AccurateGELUActivation": "tanh gelu",
        "QuickGELUActivation": "quick gelu",
        "SiLUActivation": "silu", "MishActivation": "mish", "LinearActivation": "identity",
        "ReLUSquaredActivation": "squared relu", "XIELUActivation": "xielu",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """What is known of one elementwise function f.

    Attributes:
        name: that of its operation, or another name if it is no operation; empty if it is not known.
        slope: its secant slope in closed form, a function of x and its options.
        has_bias: whether that is a slope from another value than f(0) = 0.
        options: the arguments that the closed form takes too.
        own_slope: its derivative is f(x) / x everywhere.
        through_zero: f(0) is 0 whatever its arguments; of powers for those of a tensor.
        opaque: it is evaluated at x alone.
    """

    name: str = ""
    slope: Callable[..., Tensor] | None = None
    has_bias: bool = False
    options: tuple[Argument, ...] = ()
    own_slope: bool = False
    through_zero: bool = False
    opaque: bool = False


def _curve(name: str) -> Curve:
    slope = _CLOSED.get(name) or _CLOSED_WITH_BIAS.get(name)
    known = (name in names for names in (_OWN_SLOPE, _THROUGH_ZERO, _OPAQUE))
    return Curve(name, slope, name in _CLOSED_WITH_BIAS, _OPTIONS.get(name, ()), *known)


UNKNOWN = Curve()
_CURVES = {name: _curve(name) for name in (*_CLOSED, *_CLOSED_WITH_BIAS, *_THROUGH_ZERO, *_OPAQUE)}


def curve_of(op: Op) -> Curve:
    """Return what is known of an elementwise operation."""
    return _CURVES.get(op.name, UNKNOWN)


def curve_of_module(kind: type) -> Curve:
    """Return what is known of the elementwise function that modules of this class compute."""
    return _CURVES.get(_MODULES.get(kind.__module__, {}).get(kind.__name__, ""), UNKNOWN)
