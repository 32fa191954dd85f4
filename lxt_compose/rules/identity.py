"""The identity rule for elementwise functions, and its form as a ratio."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..autograd.functions import Slots, bypass
from ..autograd.numerics import may_write_over, stabilize
from ..errors import RuleError
from .base import Call, Rule, only_output
from .slopes import has_own_slope, slope_of


@dataclass(frozen=True)
class Identity(Rule):
    """Relevance passes an elementwise function unchanged.

    ``R_x = R_z`` for ``z = f(x)``. In the gradient formulation ``g_x = g_z * f(x) / x``, in closed form where it is
    known (ReLU: x > 0, SiLU: sigmoid(x), GELU: Phi(x), tanh: tanh(x)/x with limit 1 at 0, ...), else as a
    stabilized ratio.

    Raises:
        RuleError: there are several carriers or outputs, or input and output differ in their number of elements.

    Source: Achtibat et al. 2024 (AttnLRP), eq. 9.
    """

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        call.only_carrier(self)
        x = call.carriers[place]
        return x if self.idle(call) else x.detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if self.idle(call):
            return outputs
        z, x = self._pair(call, outputs), call.values[0]
        if call.relevance:
            return [bypass(partial(_passed_on, _name_of(call), x.shape), z, (), call.carriers)]
        slope, saved = self._slope(call, x, z)
        return [bypass(partial(_sloped, _name_of(call), slope), z, saved, call.carriers)]

    def _pair(self, call: Call, outputs: list[Tensor]) -> Tensor:
        """The output, which has one element for each of the input."""
        z, x = only_output(self, call, outputs), call.values[0]
        if z.numel() != x.numel():
            raise RuleError(
                f"{self} passes relevance element by element, but {call.where} turns shape {tuple(x.shape)} "
                f"into {tuple(z.shape)}; use Epsilon() or Uniform()"
            )
        return z

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`: piecewise linear functions through 0 have f(x) / x as their own derivative."""
        return not call.relevance and len(call.carriers) == 1 and has_own_slope(call)

    def _slope(self, call: Call, x: Tensor, z: Tensor) -> tuple[partial[Tensor], tuple[Tensor, ...]]:
        return slope_of(call, x, z)


def _name_of(call: Call) -> str:
    """The name of a function, for :func:`activation_behind`: its operation's, or its module's in small letters."""
    return call.op.name if call.op is not None else type(call.module).__name__.lower()


def _passed_on(_: str, shape: torch.Size, slot: Tensor) -> Slots:
    return (slot.reshape(shape),)


def _sloped(_: str, slope: partial[Tensor], slot: Tensor, *saved: Tensor) -> Slots:
    factor = slope(*saved)
    slot = slot.reshape(factor.shape)
    # the slope is nobody else's, so its memory can take the result; not so where the backward itself is recorded
    return (factor.mul_(slot) if may_write_over(slot) else slot * factor,)


@dataclass(frozen=True)
class Ratio(Identity):
    """A nonlinearity taken for a product with a constant: ``f(x) = x * const``, ``const = f(x) / x`` held fixed.

    ``g_x = g_z * f(x) / x`` in both formulations, that is ``R_x = x * (f(x) / x) * R_z / z``. Where x and f(x) are not
    0 this is :class:`Identity`, ``R_x = R_z``, and in the gradient formulation the two are the same. They differ in the
    relevance formulation at x = 0 and at f(x) = 0: there Identity hands on what the rules above have given to an
    output of 0, while here, as in ``x * gradient``, a zero neither has relevance nor passes it on. z is stabilized
    with the resolution of its dtype.

    Raises:
        RuleError: there are several carriers or outputs, or input and output differ in their number of elements.

    Source: Jafari et al. 2025 (RelP), where f(x) is computed as ``x * stop_gradient(f(x) / x)``, a pseudo-identity.
    """

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if not call.relevance:
            return super().leave(call, outputs)
        z, x = self._pair(call, outputs), call.values[0]
        return [bypass(partial(_through_ratio, _name_of(call)), z, (x, z), call.carriers)]


def _through_ratio(_: str, slot: Tensor, x: Tensor, z: Tensor) -> Slots:
    kept = z / stabilize(z, 0.0)
    return (torch.where(x == 0, 0, (slot * kept).reshape(x.shape)),)
