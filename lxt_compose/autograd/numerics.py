"""Numerics: the signed stabilizer, sums over broadcast dimensions, checks of arguments."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..torch_internals import is_batched
from ..torch_internals.traces import is_traced


class DefaultEpsilon(float):
    """The default epsilon: in half precision it acts as the decimal resolution, 1e-3, or 1e-2 in bfloat16.

    Sums that are rounded to three digits cancel to noise or to 0, by which a smaller epsilon would let rules divide. In
    float32 and float64 it is the number itself: 1e-6 of outputs around 1 is what float32 resolves.
    """


EPSILON = DefaultEpsilon(1e-6)
"""The default of all rules."""
_HALF = (torch.float16, torch.bfloat16)


def epsilon_in(epsilon: float, dtype: torch.dtype) -> float:
    """Return epsilon as it acts in `dtype`: what was given, but at least the smallest normal number.

    1e-308, 1e-38, 6e-5 and 1e-38 for float64, float32, float16 and bfloat16; a smaller one may be 0, and R / (0 + 0) is
    not a number. 0 is no stabilizer; where one is needed, it stands for the decimal resolution: 1e-15, 1e-6, 1e-3 and
    1e-2. So does the default in half precision (see :class:`DefaultEpsilon`).
    """
    info = torch.finfo(dtype)
    if epsilon == 0 or (dtype in _HALF and isinstance(epsilon, DefaultEpsilon)):
        return max(float(epsilon), info.resolution)
    return max(float(epsilon), info.tiny)


def _bounded(quotient: Tensor, epsilon: Stabilizing) -> Tensor:
    """Return R / (z + epsilon), cut such that products with it are finite, where epsilon is small enough to overflow.

    The bound is the root of the largest number (1e19 in float32), and 2^14 in float16, for an epsilon below its inverse
    (below the resolution in float16). With a larger epsilon nothing is done.
    """
    if not isinstance(epsilon, (int, float)):
        return quotient
    info = torch.finfo(quotient.dtype)
    bound = 2.0**14 if quotient.dtype == torch.float16 else info.max**0.5
    least = info.resolution if quotient.dtype == torch.float16 else 1 / bound
    if epsilon_in(epsilon, quotient.dtype) >= least:
        return quotient
    return quotient.clamp_(-bound, bound) if may_write_over(quotient) else quotient.clamp(-bound, bound)


Stabilizing = float | Callable[[Tensor], Tensor]
"""How a denominator is kept from 0: by a number, which is added with the denominator's sign, or by a function of it.

The function must be odd, ``f(-z) = -f(z)``: rules that know the sign of a sum give it the absolute value.
"""


@dataclasses.dataclass(frozen=True)
class Stabilizer:
    """A denominator kept from 0: ``z + e * sign(z)``, or ``sign(z) * max(|z|, e)`` with `clip`; ``sign(0) = +1``.

    Any rule takes it, or a function of the denominator like it, as its `epsilon`.

    Args:
        epsilon: e, > 0; at least the smallest normal number of the dtype, the default in half precision its decimal
            resolution, and with `norm_scale` that in each dtype.
        clip: whether only what is smaller than e is moved.
        norm_scale: whether e is relative to the root mean square of z over `dim`.
        dim: the dimension of that mean, or several; all but the first if it is None.

    Raises:
        TypeError: a dimension is no integer.
        ValueError: epsilon is not positive or not finite.
    """

    epsilon: float = EPSILON
    clip: bool = dataclasses.field(default=False, metadata={"quiet": True})
    norm_scale: bool = dataclasses.field(default=False, metadata={"quiet": True})
    dim: int | tuple[int, ...] | None = dataclasses.field(default=None, metadata={"quiet": True})

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)
        check_flag("clip", self.clip)
        check_flag("norm_scale", self.norm_scale)
        if any(isinstance(dim, bool) or not isinstance(dim, int) for dim in self._dims(0)):
            raise TypeError(f"dim must be a dimension or a tuple of dimensions, got {self.dim!r}")

    def _dims(self, ndim: int) -> tuple[int, ...]:
        if self.dim is None:
            return tuple(range(1, ndim))
        return self.dim if isinstance(self.dim, tuple) else (self.dim,)

    def __call__(self, z: Tensor) -> Tensor:
        """Return the stabilized denominator."""
        if z.is_complex():
            return torch.view_as_complex(self(torch.view_as_real(z)))
        least = z.new_full((), epsilon_in(0.0 if self.norm_scale else self.epsilon, z.dtype))
        epsilon = z.new_full((), self.epsilon)
        if self.norm_scale:
            dims = self._dims(z.dim())
            epsilon = epsilon * (z.square().mean(dims, keepdim=True) if dims else z.square()).sqrt()
        epsilon = torch.maximum(epsilon, least)
        sign = torch.where(z >= 0, 1, -1)
        return sign * torch.maximum(z.abs(), epsilon) if self.clip else z + sign * epsilon


def stabilize(z: Tensor, epsilon: Stabilizing) -> Tensor:
    """Return ``z + epsilon * sign(z)`` with ``sign(0) = +1``, so that it is never 0; epsilon as by :func:`epsilon_in`.

    Real and imaginary part of a complex z are stabilized separately. A function is called as it is.
    """
    if not isinstance(epsilon, (int, float)):
        return epsilon(z)
    if z.is_complex():
        return torch.view_as_complex(stabilize(torch.view_as_real(z), epsilon))
    epsilon = epsilon_in(epsilon, z.dtype)
    # copysign and not where: ten times faster on a CPU. It takes -0.0 for negative, but a sum of contributions is
    # -0.0 only if each of them is a zero, and then none of them gets any relevance.
    return torch.copysign(z.new_full((), epsilon), z.detach()).add_(z)


def may_write_over(slot: Tensor) -> bool:
    """Return whether a backward may write its result into the memory of its own temporary.

    It may not where the backward is recorded or traced, nor where vmap runs it for several slots at a time
    (is_grads_batched).
    """
    return not (is_batched(slot) or torch.is_grad_enabled() or is_traced())


def may_hold(memory: Tensor, *operands: Tensor) -> bool:
    """Return whether a backward may write a result of operands into this memory: it would lie in its own the same way.

    How a tensor lies in memory decides which kernel a product takes, and so its last bits: they must not depend on
    whether memory is reused, which it is not in a trace.
    """
    alike = all(one.shape == memory.shape and one.stride() == memory.stride() for one in operands)
    return alike and all(map(may_write_over, (memory, *operands)))


def over_stabilized(value: Tensor, z: Tensor, epsilon: Stabilizing) -> Tensor:
    """Return ``value / stabilize(z, epsilon)``, in the memory of the denominator where autograd does not need it."""
    denominator = stabilize(z, epsilon)
    if value.dtype == z.dtype and not z.is_complex() and may_hold(denominator, value):
        return _bounded(torch.div(value, denominator, out=denominator), epsilon)
    quotient = componentwise(torch.div, value, denominator)
    return quotient if quotient.is_complex() else _bounded(quotient, epsilon)


def over_positive(value: Tensor, total: Tensor, epsilon: Stabilizing) -> Tensor:
    """Return ``value / (total + epsilon)`` for a total that is never negative, in its memory."""
    if not isinstance(epsilon, (int, float)):
        return value / epsilon(total)
    least = epsilon_in(epsilon, total.dtype)
    if not may_hold(total, value):
        return _bounded(value / (total + least), epsilon)
    total.add_(least)
    return _bounded(torch.div(value, total, out=total), epsilon)


def narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in this dtype; numbers too large for it become its largest number."""
    if value.dtype == dtype:
        return value
    largest = torch.finfo(dtype).max
    return value.clamp(-largest, largest).to(dtype)


def componentwise(operation: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Return ``operation(a, b)``; of complex tensors, of the real and of the imaginary parts separately.

    The slot of a complex carrier holds one relevance for its real and one for its imaginary part.
    """
    if not (a.is_complex() or b.is_complex()):
        return operation(a, b)
    return torch.view_as_complex(operation(torch.view_as_real(a), torch.view_as_real(b)).contiguous())


def sum_to(value: Tensor, shape: torch.Size) -> Tensor:
    """Sum `value` over the dimensions along which a tensor of `shape` was broadcast to it."""
    if value.shape == shape:
        return value
    extra = value.dim() - len(shape)
    stretched = [extra + i for i, size in enumerate(shape) if size == 1 and value.shape[extra + i] != 1]
    value = value.sum([*range(extra), *stretched], keepdim=True)
    return value.reshape(shape)


def broadcasts_to(shape: torch.Size, target: torch.Size) -> bool:
    """Return whether a tensor of `shape` can be broadcast to `target`."""
    if len(shape) > len(target):
        return False
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return all(size in (1, wanted) for size, wanted in pairs)


def check_number(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise if `value` is not a finite number within ``[low, high]``.

    Raises:
        TypeError: it is not a number.
        ValueError: it is outside the range, infinite or not a number (NaN).
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not (math.isfinite(value) and low <= value <= high):
        ends = f"{'[' if math.isfinite(low) else '('}{low:g}, {high:g}{']' if math.isfinite(high) else ')'}"
        raise ValueError(f"{name} must be finite and in {ends}, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raise if `value` is not a finite number above 0.

    Raises:
        TypeError: it is not a number; True and False are none.
        ValueError: it is 0, negative, infinite or not a number (NaN).
    """
    check_number(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise if `value` is neither True nor False, such as a number by position that was meant for another argument.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")


def check_epsilon(epsilon: Any) -> None:
    """Raise if this is neither a finite number >= 0 nor a function.

    Raises:
        TypeError: it is something else, such as a module or a class, which can be called too.
        ValueError: it is negative or not finite.
    """
    if not callable(epsilon) or isinstance(epsilon, (type, torch.nn.Module)):
        check_number("epsilon", epsilon, low=0.0)


Stabiliser = Stabilizer
"""The name in version 0.1."""
