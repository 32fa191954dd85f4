"""Drop-in functions, which compute what torch's functions do, and whose gradients are relevance.

They need no composite: put one in the place of a torch function in your own model, and start backward with the
relevance of the output; the gradient of an input is then its relevance. Names and arguments are those of LXT. As values
in a composite they stand for the rules of the same equations, which apply to every alias of the function. Tensors that
do not require grad, and all weights and biases, are constants. ``inplace`` is accepted and has no effect: relevance is
never written over another tensor. Results must not be changed in place; PyTorch raises if they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd.numerics import EPSILON, check_flag, check_number, check_positive
from ..errors import RuleError
from ..rules.epsilon import Epsilon
from ..rules.identity import Identity
from ..rules.norm import Norm
from ..rules.softmax import SoftmaxTaylor
from ..rules.stop import Stop
from ..rules.uniform import Uniform
from ..rules.uniform_epsilon import UniformEpsilon
from .drop_in import (
    SMALL,
    BlockEpsilon,
    NormIdentity,
    check_unchanged,
    constant,
    norm_shape,
    rms_norm,
    under,
    versions_of,
)

__all__ = [
    "add2",
    "epsilon_lrp",
    "identity",
    "layer_norm",
    "linear_epsilon",
    "matmul",
    "mean",
    "mul2",
    "normalize",
    "rms_norm_identity",
    "softmax",
    "stop_relevance",
]

Operand = Tensor | float | int


def linear_epsilon(input: Tensor, weight: Tensor, bias: Tensor | None = None, epsilon: float = EPSILON) -> Tensor:
    """Return ``F.linear`` under the epsilon rule.

    ``R_i = x_i * sum_j w_ji R_j / (z_j + epsilon * sign(z_j))``; the bias keeps its share.

    Args:
        input: [..., inputs].
        weight: [outputs, inputs], a constant.
        bias: [outputs], a constant, or None.
        epsilon: stabilizer (see :class:`~lxt_compose.Epsilon`).

    Source: Bach et al. 2015, eq. 58; Achtibat et al. 2024 (AttnLRP), eq. 8.
    """
    result: Tensor = under(Epsilon(epsilon), "linear_epsilon", F.linear, input, weight.detach(), constant(bias))
    return result


def add2(
    input_a: Operand, input_b: Operand, inplace: bool = False, epsilon: float = SMALL, *, alpha: float = 1
) -> Tensor:
    """Return ``a + alpha * b`` under the epsilon rule, with broadcasting.

    ``R_a = sum of a * R / (z + epsilon * sign(z))`` over the dimensions along which a was broadcast, and likewise for
    ``alpha * b``; a constant keeps its share.

    Source: Achtibat et al. 2024 (AttnLRP), eq. 8.
    """
    check_flag("inplace", inplace)
    check_number("alpha", alpha)
    result: Tensor = under(Epsilon(epsilon), "add2", torch.add, input_a, input_b, alpha=alpha)
    return result


def mul2(input_a: Operand, input_b: Operand, inplace: bool = False) -> Tensor:
    """Return ``a * b`` under the uniform rule, with broadcasting.

    ``R_a = R_b = R / 2``, summed over the dimensions along which the factor was broadcast; with a constant as the other
    factor a carrier gets all of R.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.2.
    """
    check_flag("inplace", inplace)
    result: Tensor = under(Uniform(), "mul2", torch.mul, input_a, input_b)
    return result


def matmul(input_a: Tensor, input_b: Tensor, inplace: bool = False, epsilon: float = SMALL) -> Tensor:
    """Return ``torch.matmul`` under the uniform epsilon rule, for all shapes that it takes.

    With ``s = R / (n * (z + epsilon * sign(z)))``: ``R_A = A * (s B^T)``, ``R_B = B * (A^T s)``; n = 2 if both factors
    are carriers, n = 1 if one is a constant.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.3.
    """
    check_flag("inplace", inplace)
    result: Tensor = under(UniformEpsilon(epsilon), "matmul", torch.matmul, input_a, input_b)
    return result


def softmax(
    input: Tensor, dim: int, dtype: torch.dtype | None = None, temperature: float = 1.0, inplace: bool = False
) -> Tensor:
    """Return ``softmax(x / temperature)`` along `dim`, by a Taylor expansion at x.

    ``R_x = x / temperature * (R - s * sum_j R_j)``, the sum along `dim`; inputs of -inf (masked ones) get 0, also where
    all of a row is masked.

    Args:
        input: any shape.
        dim: the dimension along which s sums to 1.
        dtype: the dtype of the result; the relevance of x has that of x.
        temperature: divides x, > 0.
        inplace: changes nothing.

    Raises:
        TypeError: the temperature is no number; ``softmax(x, dim, dtype, inplace)`` was the order of older versions of
            LXT, so True and False are refused.
        ValueError: the temperature is not positive.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.1.
    """
    check_positive("temperature", temperature)
    check_flag("inplace", inplace)
    x = input if dtype is None else input.to(dtype)
    if temperature != 1:
        x = under(Uniform(), "softmax", torch.div, x, temperature)
    result: Tensor = under(SoftmaxTaylor(), "softmax", torch.softmax, x, dim)
    return result


def mean(
    x: Tensor,
    dim: int | Sequence[int] | None = None,
    keep_dim: bool = False,
    epsilon: float = EPSILON,
    *,
    keepdim: bool | None = None,
) -> Tensor:
    """Return ``x.mean(dim)`` under the epsilon rule.

    ``R_i = x_i / n * R / (z + epsilon * sign(z))`` with the n elements of each mean.

    Args:
        x: any shape.
        dim: one dimension, several, or None for all.
        keep_dim: whether averaged dimensions stay, with size 1; `keepdim` is another name for it.
        epsilon: stabilizer (see :class:`~lxt_compose.Epsilon`).
        keepdim: see `keep_dim`.

    Source: Bach et al. 2015, eq. 58, on the mean as a linear function.
    """
    dims = tuple(range(x.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    kept = keep_dim if keepdim is None else keepdim
    check_flag("keep_dim", kept)
    result: Tensor = under(Epsilon(epsilon), "mean", torch.mean, x, dims, kept)
    return result


def layer_norm(
    hidden_states: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    variance_epsilon: float,
    *,
    normalized_shape: Sequence[int] | None = None,
) -> Tensor:
    """Return ``F.layer_norm`` with the standard deviation held constant.

    With that it is linear, and gets the epsilon rule.

    ``z = (x - mean(x)) / sigma * w + b``; with ``s = w / sigma * R / z``, z stabilized by the resolution of its dtype,
    it is ``R_x = x * (s - mean(s))``; the bias keeps its share.

    Args:
        hidden_states: [..., *normalized_shape].
        weight: [*normalized_shape], a constant, or None for 1.
        bias: [*normalized_shape], a constant, or None for 0.
        variance_epsilon: is added to the variance.
        normalized_shape: None is the shape of the weight, or the last dimension without one.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.4; the centering as in Ali et al. 2022, eq. 10.
    """
    check_number("variance_epsilon", variance_epsilon, low=0.0)
    shape = norm_shape(hidden_states, weight, normalized_shape)
    arguments = (hidden_states, shape, constant(weight), constant(bias), variance_epsilon)
    result: Tensor = under(Norm(), "layer_norm", F.layer_norm, *arguments)
    return result


def rms_norm_identity(hidden_states: Tensor, weight: Tensor | None, variance_epsilon: float) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + epsilon) * w``, computed in float32 for half precision; relevance passes unchanged.

    ``R_x = R_z``, since with the root held constant each output comes from one input.

    Args:
        hidden_states: [..., *shape of the weight]; the mean is over the dimensions of the weight, the last one without.
        weight: a constant, or None for 1.
        variance_epsilon: is added to the mean square.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.4.
    """
    check_number("variance_epsilon", variance_epsilon, low=0.0)
    arguments = (hidden_states, norm_shape(hidden_states, weight, None), constant(weight), variance_epsilon)
    result: Tensor = under(NormIdentity(), "rms_norm_identity", rms_norm, *arguments)
    return result


def normalize(
    input: Tensor, p: float = 2.0, dim: int | tuple[int, ...] = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """Return ``F.normalize``: x divided by its p-norm along `dim`; relevance passes unchanged.

    ``R_x = R_z``, since with the norm held constant each output comes from one input.

    Raises:
        ValueError: `out` is given, through which no relevance could flow.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.4.
    """
    if out is not None:
        raise ValueError("normalize() takes no out=: relevance cannot flow back from a tensor that is written into")
    if p not in (math.inf, -math.inf):
        check_number("p", p)
    check_number("eps", eps, low=0.0)
    result: Tensor = under(NormIdentity(), "normalize", F.normalize, input, p, dim, eps)
    return result


def epsilon_lrp(fn: Callable[..., Any], epsilon: float, *inputs: Any) -> Any:
    """Return ``fn(*inputs)``, any differentiable function or module, under the epsilon rule.

    ``R_x = x * J^T (R / (z + epsilon * sign(z)))`` for each carrier x; several outputs z add up. Tensors of `fn`
    itself, such as parameters, are constants: nothing reaches their ``.grad``.

    Source: Bach et al. 2015, eq. 58; for whole blocks: Achtibat et al. 2024 (AttnLRP), eq. 5.
    """
    return under(BlockEpsilon(epsilon), "epsilon_lrp", fn, *inputs)


def identity(fn: Callable[..., Tensor], input: Tensor) -> Tensor:
    """Return ``fn(x)`` for an elementwise function or module; relevance passes unchanged.

    ``R_x = R_z``.

    Raises:
        ValueError: the output has another number of elements than the input.
        RuntimeError: `fn` changes its input in place.

    Source: Achtibat et al. 2024 (AttnLRP), eq. 9.
    """
    versions = versions_of(input)
    try:
        result: Tensor = under(Identity(zero_bias=True), "identity", fn, input)
    except RuleError:
        raise ValueError(
            f"identity() passes relevance element by element, but {fn!r} gives another number of elements than the "
            f"{input.numel()} of its input, or several tensors; use epsilon_lrp()"
        ) from None
    check_unchanged(fn, input, versions)
    return result


def stop_relevance(fn: Callable[..., Any], input: Any) -> Any:
    """Return ``fn(x)`` as a constant: no relevance passes, ``R_x = 0``.

    Raises:
        RuntimeError: `fn` changes its input in place.

    Source: Ali et al. 2022 (CP-LRP), which stops queries and keys; sections 3.2 and 3.3.
    """
    versions = versions_of(input)
    result = under(Stop(), "stop_relevance", fn, input)
    check_unchanged(fn, input, versions)
    return result
