"""The identity rule for a function of one tensor that is written as several elementwise operations."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..autograd.functions import Slots, bypass
from ..autograd.numerics import narrowed
from ..autograd.saved_values import Kept, keep
from .absorption import BIAS
from .base import Amount, Call, Rule, only_output
from .expansion import Expansion
from .identity import through_slope
from .slopes import ratio, secant


class Anchor(NamedTuple):
    """The tensor to which the rule hands relevance; it is 0 where the source of the chain is 0."""

    tensor: Tensor
    """The tensor, with its autograd graph."""
    value: Tensor
    """A copy of its values that no change in place reaches; not needed in the relevance formulation."""


@dataclass(frozen=True)
class Chained(Rule):
    """:class:`Identity` for ``z = f(a)``, where f is all that was computed from a since, and z its last step.

    ``R_a = R_z * (f(a) - f(0)) / f(a)``; in the gradient formulation ``g_a = g_z * (f(a) - f(0)) / a``, with f'(0) at
    a = 0. An output of 0 passes nothing on. All goes to a, past the steps in between: their own rules would expand each
    of them at 0, and not at the value that it has where a is 0. The call's `kept` is the :class:`Anchor` a.

    Args:
        expansion: f(0) and f'(0).

    Source: as for :class:`Identity`.
    """

    expansion: Expansion

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        anchor: Anchor = call.kept
        z, (at, value, slope) = only_output(self, call, outputs), self.expansion
        step: Callable[..., Slots]
        saved: tuple[Tensor, ...] = (z,) if value else ()
        if call.relevance:
            step = partial(_less_bias, value)
        else:
            saved = anchor.value, z
            factor = partial(secant, at, value=value, slope=slope) if value else partial(ratio, limit=slope)
            step = partial(through_slope, factor)
        return [bypass(step, z, saved, [anchor.tensor])]

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: ``R * f(0) / f(a)``."""
        value = self.expansion.value
        return {BIAS: partial(_due_to_bias, call.relevance, value, keep(call.z))} if value else {}


def _less_bias(value: float, slot: Tensor, *saved: Tensor) -> Slots:
    """Return ``R * (z - f(0)) / z``; 0 where z is 0, or too small to divide by."""
    if not saved:
        return (slot,)
    z = saved[0].float() if saved[0].dtype in (torch.float16, torch.bfloat16) else saved[0]
    small = z.abs() < torch.finfo(z.dtype).tiny
    return (narrowed(slot * ((z - value) / torch.where(small, 1, z)).masked_fill(small, 0), slot.dtype),)


def _due_to_bias(relevance: bool, value: float, kept: Kept, slot: Tensor) -> Tensor:
    z = kept.value
    share = slot / torch.where(z == 0, 1, z) if relevance else slot
    return (share * value).masked_fill(z == 0, 0)
