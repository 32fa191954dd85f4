"""The rule for sums of two streams: a residual and the branch beside it."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..autograd.functions import Slots, bypass
from ..autograd.numerics import check_number, sum_to
from ..errors import RuleError
from ..ops import Family, Op, is_reversed
from .base import GRADIENT, Amount, Call, Rule
from .epsilon import Epsilon

_ONE_OPERAND = {False: Epsilon(0.0), True: Epsilon(0.0)}


@dataclass(frozen=True)
class ResidualGamma(Rule):
    """Sums of two carriers, ``c = a + b``: an operand with the sign of the sum weighs 1 + gamma.

    ``R_a = w_a a / (w_a a + w_b b) * R_c`` with ``w = 1 + gamma * [same sign as c]``, and likewise for b: exactly
    conservative, and where a and b cancel each other the shares stay within ``[-1/gamma, 1 + 1/gamma]``, while those
    of :class:`Epsilon`, ``a / c``, have no bound. In the gradient formulation ``g_a = g_c * c w_a / (w_a a + w_b b)``.

    Both are computed from ``s``, the sum of the operands that have the sign of c, and from ``t = c / s`` in [0, 1], the
    part of it that is not canceled: ``w_a a + w_b b = s (t + gamma)``, so nothing is divided by a small difference.
    Where both operands are 0, each gets half of the relevance. A sum with one carrier and a constant gets
    :class:`Epsilon`. On a module the rule acts on the additions and subtractions inside it.

    Args:
        gamma: how much more the operand weighs that has the sign of the sum, > 0 (at 0 it would be :class:`Epsilon`).

    Raises:
        ValueError: gamma is not positive or not finite.
        RuleError: the operation is no sum of two tensors.

    Source: Berend et al. 2026 (ResLRP).
    """

    families: ClassVar[frozenset[Family]] = frozenset({Family.LINEAR})
    shares_streams: ClassVar[bool] = True

    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, low=0.0)
        if self.gamma == 0:
            raise ValueError("gamma must be above 0, got 0, where shares have no bound; that rule is Epsilon()")

    def serves(self, op: Op, carriers: int) -> bool:
        """See :meth:`Rule.serves`: sums of two carriers."""
        return op.traits.signs is not None and carriers == 2

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        if call.op is None or call.op.traits.signs is None:
            raise RuleError(f"{self} knows sums of two tensors only, not {call.where}; use Epsilon()")
        if len(call.carriers) == 1:
            return _ONE_OPERAND[call.relevance].enter(call, place)
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if len(call.carriers) == 1:
            return _ONE_OPERAND[call.relevance].leave(call, outputs)
        c = outputs[0]
        step = partial(_shares if call.relevance else _slopes, self.gamma, _factors(call))
        return [bypass(step, c, tuple(call.values), call.carriers)]

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: nothing of two carriers; a constant operand keeps its share, as under Epsilon."""
        return {} if len(call.carriers) > 1 else _ONE_OPERAND[call.relevance].absorbed(call)

    def rest(self, call: Call) -> str:
        """See :meth:`Rule.rest`."""
        return _ONE_OPERAND[call.relevance].rest(call)

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`: in the gradient formulation a constant addend changes nothing."""
        return call.formulation == GRADIENT and len(call.carriers) == 1


def _factors(call: Call) -> tuple[float, float]:
    """Return the factors of the operands of a sum.

    `alpha` multiplies the second operand, in a reversed subtraction the first.
    """
    assert call.op is not None
    assert call.op.traits.signs is not None
    first, second = call.op.traits.signs
    alpha: Any = call.kwargs.get("alpha", 1)
    if len(call.args) == 3:
        alpha = call.args[1]  # the old form add(input, alpha, other)
    first, second = (first * alpha, second) if is_reversed(call.op) else (first, second * alpha)
    swapped = [name for name in call.kwargs if name in ("input", "other")] == ["other", "input"]
    return (second, first) if swapped else (first, second)


def _positive(x: Tensor) -> Tensor:
    """Return 1 where x >= 0, and 0 elsewhere, as numbers: a product with them costs a fraction of `torch.where`."""
    return x.detach().clone().ge_(0)


def _measured(factors: tuple[float, float], a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Return the operands as they are added, whether each has the sign of c, the sum s of those, and t = c / s.

    The last is where both operands are 0: there s is 1, and t too.
    """
    a, b = (x if factor == 1 else x * factor for x, factor in zip((a, b), factors, strict=True))
    c = a + b
    a, b = (x if x.shape == c.shape else x.expand_as(c) for x in (a, b))
    positive = _positive(c)
    same_a, same_b = _positive(a).eq_(positive), _positive(b).eq_(positive)
    s = a * same_a + b * same_b
    nothing = s.detach().clone().eq_(0)
    s = s + nothing
    return a, b, same_a, same_b, s, (c + nothing) / s, nothing


def _shares(gamma: float, factors: tuple[float, float], slot: Tensor, a: Tensor, b: Tensor) -> Slots:
    shapes = a.shape, b.shape
    a, b, same_a, same_b, s, t, nothing = _measured(factors, a, b)
    slot = slot / (t + gamma)
    share_a, share_b = (  # at a = b = 0 half of the relevance each
        sum_to(torch.addcmul(slot, slot, same, value=gamma) * (torch.add(x, nothing, alpha=0.5) / s), shape)
        for same, x, shape in ((same_a, a, shapes[0]), (same_b, b, shapes[1]))
    )
    return share_a, share_b


def _slopes(gamma: float, factors: tuple[float, float], slot: Tensor, a: Tensor, b: Tensor) -> Slots:
    shapes = a.shape, b.shape
    _, _, same_a, same_b, _, t, _ = _measured(factors, a, b)
    slot = slot * (t / (t + gamma))
    found = (
        sum_to(torch.addcmul(slot, slot, same, value=gamma), shape)
        for same, shape in zip((same_a, same_b), shapes, strict=True)
    )
    slot_a, slot_b = (g if factor == 1 else g * factor for g, factor in zip(found, factors, strict=True))
    return slot_a, slot_b
