"""The identity rule for elementwise functions, and its form as a ratio."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..autograd.functions import Slots, bypass
from ..autograd.numerics import check_flag, may_hold, narrowed, stabilize
from ..errors import RuleError
from .absorption import BIAS, STABILIZER
from .again import Again
from .base import Amount, Call, Rule, only_output
from .slopes import Slope, curve_called, slope_of
from .spelling import QUIET


@dataclass(frozen=True)
class ElementwiseRule(Rule):
    """Base of the rules with one input and one output of as many elements."""

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        call.only_carrier(self)
        x = call.carriers[place]
        if call.idle is None:
            call.idle = self.idle(call)
        return x if call.idle else x.detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if call.idle is None:
            call.idle = self.idle(call)
        if call.idle:
            return outputs
        z, x = self.pair(call, outputs), call.values[0]
        if call.relevance and self.passes_whole(call):
            return [bypass(partial(_passed_on, x.shape), z, (), call.carriers)]
        slope = self.slope(call, x, z)
        if not call.relevance:
            return [bypass(partial(through_slope, slope.factor), z, slope.saved, call.carriers)]
        if not slope.has_bias:
            return [bypass(partial(_passed_on, x.shape), z, (), call.carriers)]
        return [bypass(partial(_less_bias, slope.factor), z, (z, *slope.saved), call.carriers)]

    def pair(self, call: Call, outputs: list[Tensor]) -> Tensor:
        """Return the output, which has one element for each of the input."""
        z, x = only_output(self, call, outputs), call.values[0]
        if z.numel() != x.numel():
            raise RuleError(
                f"{self} passes relevance element by element, but {call.where} turns shape {tuple(x.shape)} "
                f"into {tuple(z.shape)}; use Epsilon() or Uniform()"
            )
        return z

    def passes_whole(self, call: Call) -> bool:
        """Return whether all relevance passes, so that the slope is not needed in the relevance formulation."""
        return True

    def slope(self, call: Call, x: Tensor, z: Tensor) -> Slope:
        """Return what the gradient is multiplied with."""
        return slope_of(call, x, z, whole=True)

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: ``R * f(0) / f(x)``, with the slope of the secant ``R - R / f(x) * x * slope``."""
        if call.rerun is None or self.idle(call) or (call.relevance and self.passes_whole(call)):
            return {}  # and an operation in place may have overwritten x
        return {self.rest(call): partial(self._kept, call)}

    def rest(self, call: Call) -> str:
        """See :meth:`Rule.rest`."""
        return STABILIZER

    def _kept(self, call: Call, slot: Tensor) -> Tensor:
        x, z = call.values[0], call.z
        factor, saved, has_bias = self.slope(call, x, z)
        if call.relevance and not has_bias:
            return torch.zeros_like(slot)
        g = torch.where(z == 0, 0, slot / torch.where(z == 0, 1, z)) if call.relevance else slot
        return call.relevance_in(slot) - (g.reshape(x.shape) * x * factor(*saved)).reshape(z.shape)


@dataclass(frozen=True)
class Identity(ElementwiseRule):
    """Relevance passes an elementwise function unchanged, but for the share of its bias f(0).

    ``z = f(x) = f(0) + (f(x) - f(0))``: the first part is constant, and keeps its share as the bias of a layer does:
    ``R_x = R_z * (f(x) - f(0)) / f(x)``, which is R_z where f(0) = 0 (ReLU, GELU, tanh). In the gradient formulation
    ``g_x = g_z * (f(x) - f(0)) / x``, the slope of a secant, with limit f'(0) at 0; in closed form where it is known
    (ReLU: x > 0, SiLU: sigmoid(x), GELU: Phi(x), tanh: tanh(x) / x, sigmoid: tanh(x / 2) / (2 x), ...). An output of 0
    passes nothing on.

    The slope is no larger than those of f, so ``|R_x| <= L * |x| * |R_z / z|`` if f has slopes up to L, and relevance
    stays in bounds from layer to layer. If all of R_z went to x (`zero_bias`), ``R_z / x`` would have no bound at
    x = 0, and the layer below divides by that x. With f(0) as a bias, relevance does not depend on how a constant is
    divided between f and the bias of the layer above: sigmoid(x) and ``1/2 + tanh(x / 2) / 2`` get the same.

    Where f(0) is not finite, f is expanded at another point a, ``g_x = g_z * (f(x) - f(a)) / (x - a)``: a = 1 for
    logarithms, so that ``log(exp(x))`` is the identity, 1/2 for logit. The bias then is ``f(a) - a * slope``. Functions
    with no such point (acosh), and modules that are not elementwise (a normalization), pass all of R_z.

    Args:
        zero_bias: whether f(0) gets no relevance, so that all of it passes: ``R_x = R_z``, ``g_x = g_z * f(x) / x``.

    Raises:
        RuleError: there are several carriers or outputs, or input and output differ in their number of elements.

    Source: Achtibat et al. 2024 (AttnLRP), eq. 9, for f(0) = 0; the bias as in Bach et al. 2015, eq. 58.
    """

    zero_bias: bool = field(default=False, metadata=QUIET)

    def __post_init__(self) -> None:
        check_flag("zero_bias", self.zero_bias)

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`: piecewise linear functions through 0 have f(x) / x as their own derivative."""
        return not call.relevance and len(call.carriers) == 1 and curve_called(call).own_slope

    def passes_whole(self, call: Call) -> bool:
        """Return whether f(0) is 0, or its share passes too."""
        curve = curve_called(call)
        return self.zero_bias or curve.through_zero or curve.opaque

    def slope(self, call: Call, x: Tensor, z: Tensor) -> Slope:
        """Return what the gradient is multiplied with."""
        return slope_of(call, x, z, whole=self.zero_bias)

    def rest(self, call: Call) -> str:
        """See :meth:`Rule.rest`: f(0)."""
        return STABILIZER if self.zero_bias else BIAS

    def again(self, call: Call, output: Tensor) -> Again | None:
        """See :meth:`Rule.again`: where the slope is a function of the carrier alone."""
        if call.relevance:
            return Again(_pass_whole) if self.passes_whole(call) else None
        slope = self.slope(call, call.values[0], output)
        alone = len(slope.saved) == 1 and slope.saved[0] is call.values[0]
        return Again(partial(_with_slope, slope.factor)) if alone else None


def _pass_whole(carriers: Sequence[Tensor], z: Tensor, *_: Any) -> Tensor:
    return bypass(partial(_passed_on, carriers[0].shape), z, (), carriers)


def _with_slope(slope: Callable[..., Tensor], carriers: Sequence[Tensor], z: Tensor, *_: Any) -> Tensor:
    return bypass(partial(through_slope, slope), z, carriers, carriers)


def _passed_on(shape: torch.Size, slot: Tensor) -> Slots:
    return (slot.reshape(shape),)


def through_slope(slope: Callable[..., Tensor], slot: Tensor, *saved: Tensor) -> Slots:
    """Return the slot times a slope that is a function of what was saved."""
    factor = slope(*saved)
    slot = slot.reshape(factor.shape)
    # nothing else uses the slope, so the result may overwrite it, unless the backward pass is recorded itself
    return (factor.mul_(slot) if may_hold(factor, slot) else slot * factor,)


def _less_bias(slope: Callable[..., Tensor], slot: Tensor, z: Tensor, *saved: Tensor) -> Slots:
    """Return ``R / z * slope * x``; 0 where z is 0, or too small to divide by."""
    x = saved[0]
    if x.dtype in (torch.float16, torch.bfloat16):  # relevance and output may both be below their range
        saved, z = (x.float(), *saved[1:]), z.float()
    small = z.abs() < torch.finfo(z.dtype).tiny
    gradient = (slot / torch.where(small, 1, z)).masked_fill(small, 0).reshape(x.shape)
    return (narrowed(gradient * slope(*saved) * saved[0], x.dtype),)


@dataclass(frozen=True)
class Ratio(ElementwiseRule):
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

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`."""
        return not call.relevance and len(call.carriers) == 1 and curve_called(call).own_slope

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if not call.relevance:
            return super().leave(call, outputs)
        z, x = self.pair(call, outputs), call.values[0]
        return [bypass(_through_ratio, z, (x, z), call.carriers)]

    def _kept(self, call: Call, slot: Tensor) -> Tensor:
        """Return all of R where x is 0, elsewhere ``R - R * z / (z + e sign z)``."""
        if not call.relevance:
            return super()._kept(call, slot)
        x, z = call.values[0].reshape(call.z.shape), call.z
        return slot - torch.where(x == 0, 0, slot * z / stabilize(z, 0.0))


def _through_ratio(slot: Tensor, x: Tensor, z: Tensor) -> Slots:
    kept = z / stabilize(z, 0.0)
    return (torch.where(x == 0, 0, (slot * kept).reshape(x.shape)),)
