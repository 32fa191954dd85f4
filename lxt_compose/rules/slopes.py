"""f(x) / x of elementwise functions: what the identity rule multiplies gradients with in the gradient formulation."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd.numerics import stabilize
from .base import Call

# Piecewise linear with f(0) = 0 and no other kink: the derivative is f(x) / x, so autograd does it for nothing.
_OWN_SLOPE = frozenset({"relu", "leaky_relu", "abs", "prelu", "rrelu", "positive", "neg"})


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """``Phi(x) = gelu(x) / x`` by torch's own kernel, several times faster than erf and its neighbors one by one.

    x is moved away from 0 by less than it is rounded by, so that the quotient is 1/2 there.
    """
    x = torch.copysign(x.new_full((), 4 * torch.finfo(x.dtype).tiny), x).add_(x)
    return F.gelu(x, approximate=approximate).div_(x)


def _limited(f: Callable[[Tensor], Tensor], limit: float, x: Tensor) -> Tensor:
    """f(x) / x, and its limit where x is 0 or too small to divide by."""
    tiny = x.abs() < torch.finfo(x.dtype).tiny
    one = x.new_ones(())
    return torch.where(tiny, one * limit, f(x) / torch.where(tiny, one, x))


# Closed forms, by the name of the operation, for functions with f(0) = 0.
_CLOSED: dict[str, Callable[..., Tensor]] = {
    "silu": torch.sigmoid,
    "gelu": _gelu,
    "mish": lambda x: torch.tanh(F.softplus(x)),
    "softsign": lambda x: 1 / (1 + x.abs()),
    "hardswish": lambda x: (x / 6 + 0.5).clamp(0, 1),
    "tanh": partial(_limited, torch.tanh, 1.0),
    "sin": partial(_limited, torch.sin, 1.0),
    "tan": partial(_limited, torch.tan, 1.0),
    "asin": partial(_limited, torch.asin, 1.0),
    "atan": partial(_limited, torch.atan, 1.0),
    "sinh": partial(_limited, torch.sinh, 1.0),
    "asinh": partial(_limited, torch.asinh, 1.0),
    "atanh": partial(_limited, torch.atanh, 1.0),
    "erf": partial(_limited, torch.erf, 2 / math.sqrt(math.pi)),
    "expm1": partial(_limited, torch.expm1, 1.0),
    "log1p": partial(_limited, torch.log1p, 1.0),
    "relu6": partial(_limited, F.relu6, 0.0),
}
_LIMITS = {"elu": 1.0, "selu": 1.0507009873554805, "celu": 1.0, "hardtanh": 1.0, "clipped gelu": 0.5}

_CLOSED |= {
    "identity": torch.ones_like,
    "tanh gelu": partial(_gelu, approximate="tanh"),
    "fast gelu": lambda x: 0.5 * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
    "quick gelu": lambda x: torch.sigmoid(1.702 * x),
    "square": lambda x: x.clone(),
    "squared relu": F.relu,
}

# Modules that are one elementwise function: from where the class stands and its name to the function.
_MODULES = {
    "torch.nn.modules.activation": {
        "ReLU": "relu", "LeakyReLU": "leaky_relu", "PReLU": "prelu", "SiLU": "silu", "GELU": "gelu", "Mish": "mish",
        "Softsign": "softsign", "Hardswish": "hardswish", "Tanh": "tanh", "ReLU6": "relu6", "ELU": "elu",
        "SELU": "selu", "CELU": "celu", "Hardtanh": "hardtanh",
    },
    "transformers.activations": {
        "GELUActivation": "gelu", "GELUTanh": "tanh gelu", "NewGELUActivation": "tanh gelu",
        "FastGELUActivation": "fast gelu", "AccurateGELUActivation": "tanh gelu",
        "ClippedGELUActivation": "clipped gelu", "QuickGELUActivation": "quick gelu",
        "SiLUActivation": "silu", "MishActivation": "mish", "LinearActivation": "identity",
        "ReLUSquaredActivation": "squared relu", "XIELUActivation": "xielu",
    },
}  # fmt: skip


def _name_of(call: Call) -> str:
    if call.module is not None:
        kind = type(call.module)
        return _MODULES.get(kind.__module__, {}).get(kind.__name__, "")
    return call.op.name if call.op is not None else ""


def has_own_slope(call: Call) -> bool:
    """Whether the function's own derivative is f(x) / x everywhere."""
    return _name_of(call) in _OWN_SLOPE


def slope_of(call: Call, x: Tensor, z: Tensor) -> tuple[partial[Tensor], tuple[Tensor, ...]]:
    """A function of the saved tensors that gives f(x) / x, and those tensors."""
    name = _name_of(call)
    if name == "gelu":
        module_form = getattr(call.module, "approximate", "none")
        given = call.args[1] if len(call.args) > 1 and call.module is None else module_form
        return partial(_gelu, approximate=call.kwargs.get("approximate", given)), (x,)
    if name in ("pow", "float_power"):
        exponent = call.kwargs.get("exponent", call.args[1] if len(call.args) > 1 else 1)
        return partial(torch.pow, exponent=exponent - 1), (x,)
    if name == "xielu":
        return partial(_xielu), (x, *(getattr(call.module, part) for part in ("alpha_p", "alpha_n", "beta")))
    if name in _CLOSED:
        return partial(_CLOSED[name]), (x,)
    return partial(ratio, limit=_LIMITS.get(name)), (x, z)


def _xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor) -> Tensor:
    """``softplus(alpha_p) x + beta`` where x > 0, else ``(expm1(x) / x - 1) (beta + softplus(alpha_n)) + beta``.

    Source: Huang 2024 (arXiv:2411.13010), eq. 5.
    """
    below = _limited(torch.expm1, 1.0, x.clamp(max=0)) - 1
    return torch.where(x > 0, F.softplus(alpha_p) * x, below * (beta + F.softplus(alpha_n))) + beta


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
