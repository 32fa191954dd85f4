"""Bypass rules: the operation's own gradient is not used, relevance is handed on by other means."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import RuleError, place
from ..gradients import Slots, bypass, shared_evenly
from ..numerics import broadcasts_to, may_write_over, stabilise
from .base import GRADIENT, Call, Rule
from .scaling import Scaling, UniformEpsilon
from .slopes import has_own_slope, slope_of


def only_output(rule: Rule, call: Call, outputs: list[Tensor]) -> Tensor:
    """The single output of a call, for rules that know one.

    Raises:
        RuleError: there are several, or none.
    """
    if len(outputs) != 1:
        raise RuleError(
            f"{rule} knows operations with one output, but {call.where} has {len(outputs)}; "
            f"use Epsilon(), which takes any number, or put rules on the parts inside"
        )
    return outputs[0]


@dataclass(frozen=True)
class Uniform(Rule):
    """Each of the n carriers of an operation gets the same part of the relevance.

    ``R_i = R / n``, summed over the dimensions along which carrier i was broadcast.
    In the gradient formulation it knows products ``z = x_1 * ... * x_n``, where it is ``g / n`` before the product's
    own gradient; any other operation needs the relevance formulation, since zero inputs can get relevance.

    Raises:
        RuleError: a carrier cannot be broadcast to the output's shape, or (gradient) the operation is no product.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.2.
    """

    knows_complex: ClassVar[bool] = True
    as_scaling: ClassVar[Scaling] = UniformEpsilon(0.0)
    """What it is for a product in the gradient formulation."""

    def sharers(self, call: Call) -> list[Tensor]:
        """The carriers that get a part each."""
        return call.carriers

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        if call.relevance and not call.carriers[place].is_complex():
            return call.carriers[place].detach()
        return self.as_scaling.enter(self._product(call), place)

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if not call.relevance or any(x.is_complex() for x in call.carriers):
            return self.as_scaling.leave(self._product(call), outputs)
        z, sharers = only_output(self, call, outputs), self.sharers(call)
        shapes = [x.shape for x in sharers]
        for shape in shapes:
            if not broadcasts_to(shape, z.shape):
                raise RuleError(
                    f"{self} shares relevance element by element, but {call.where} has an input of shape "
                    f"{tuple(shape)} and an output of shape {tuple(z.shape)}; use UniformEpsilon() or Epsilon()"
                )
        return [bypass(partial(shared_evenly, shapes), z, (), sharers)]

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`: a product with one carrier is linear in it."""
        return not call.relevance and len(call.carriers) == 1 and self._product(call) is call

    def check_module(self, module: nn.Module, path: str, formulation: str) -> None:
        """See :meth:`Rule.check_module`."""
        if formulation == GRADIENT:
            raise RuleError(
                f"{self} on a module ({place(path)}, {type(module).__name__}) needs formulation='relevance', since it "
                f"gives relevance to inputs that are 0; in the gradient formulation use Epsilon() or Pass()"
            )

    def _product(self, call: Call) -> Call:
        # A complex product mixes real and imaginary parts: no element of it belongs to one element of a factor.
        if call.op is None or not (call.op.multiplies or call.op.held):
            raise RuleError(
                f"{self} in the gradient formulation knows products of tensors only, not {call.where}; "
                f"use formulation='relevance', or UniformEpsilon() or Epsilon()"
            )
        return call


@dataclass(frozen=True)
class Identity(Rule):
    """Relevance passes an elementwise function unchanged.

    ``R_x = R_z`` for ``z = f(x)``. In the gradient formulation ``g_x = g_z * f(x) / x``, in closed form where it is
    known (ReLU: x > 0, SiLU: sigmoid(x), GELU: Phi(x), tanh: tanh(x)/x with limit 1 at 0, ...), else as a
    stabilised ratio.

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
    output of 0, while here, as in ``x * gradient``, a zero neither has relevance nor passes it on. z is stabilised
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
    kept = z / stabilise(z, 0.0)
    return (torch.where(x == 0, 0, (slot * kept).reshape(x.shape)),)


@dataclass(frozen=True)
class Pass(Identity):
    """Relevance passes a whole module or operation unchanged, whatever it computes; reshaped where shapes differ.

    ``R_x = R_z``. In the gradient formulation ``g_x = g_z * z / (x + epsilon * sign(x))``, epsilon the resolution.
    Unlike :class:`Identity` it knows no closed forms and expects no elementwise function.

    Raises:
        RuleError: there are several carriers or outputs, or input and output differ in their number of elements.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.4.
    """

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`."""
        return False

    def _slope(self, call: Call, x: Tensor, z: Tensor) -> tuple[partial[Tensor], tuple[Tensor, ...]]:
        return partial(_plain_ratio), (x, z)


def _plain_ratio(x: Tensor, z: Tensor) -> Tensor:
    return z.reshape(x.shape) / stabilise(x, 0.0)


@dataclass(frozen=True)
class Stop(Rule):
    """No relevance passes: ``R_x = 0``. The output becomes a constant, also for the operations that use it.

    Source: Ali et al. 2022 (CP-LRP), which stops queries and keys; sections 3.2 and 3.3.
    """

    knows_complex: ClassVar[bool] = True

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        return [z.detach() for z in outputs]
