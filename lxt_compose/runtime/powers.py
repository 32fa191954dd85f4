"""Notes of a softmax that a model writes itself: its exponents, and steps from their powers on."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from ..autograd.functions import Share, Slots, bypass, graft
from ..autograd.nodes import origin_of
from ..autograd.saved_values import Kept, keep
from ..ops import Elementwise
from ..rules.softmax import Total as Sums
from .linear_steps import Step, Total


class Shifted:
    """A tensor that something was added to or subtracted from, and the steps after that.

    Args:
        x: the tensor.
        own: whether the subtraction takes its own gradient. Then a weak reference is enough, since seldom is it needed.
        changed: whether the tensor is about to be changed in place.
    """

    __slots__ = ("_edge", "_held", "_x", "own", "steps")

    def __init__(self, x: Tensor, *, own: bool, changed: bool) -> None:
        self.own, self._edge = own, (origin_of(x), x._version)
        self._held = Exponents(x) if changed and not own else None
        self._x: Callable[[], Tensor | None] = weakref.ref(x) if own or changed else (lambda: x)
        self.steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> Shifted | None:
        """Return the same after it was scaled, or masked; None if it is no longer known."""
        if step.op.traits.elementwise is Elementwise.AFFINE and step.op.traits.signs is None:
            return self
        if not step.scales:
            return None
        other = copy(self)
        other.steps = (*self.steps, step)
        return other

    def exponents(self) -> Exponents | None:
        """Return the tensor as exponents; None if it is gone, or was changed in place."""
        x = self._x()
        if self._held is not None or x is None or (origin_of(x), x._version) != self._edge:
            return self._held
        return Exponents(x)


class Exponents:
    """The exponents of a power: their graph, and their values times the logarithm of the base."""

    __slots__ = ("_carriers", "_value", "edge", "rate", "shifted", "way")

    def __init__(self, z: Tensor, rate: float = 1.0, shifted: Shifted | None = None) -> None:
        self.edge, self.rate, self.shifted = origin_of(z), rate, shifted
        self.way: Tensor = Share.apply(z, 1.0)
        self._value: Kept = keep(z)
        self._carriers: dict[bool, Tensor] = {}

    @property
    def value(self) -> Tensor:
        """The exponents to the base e."""
        return self._value.value if self.rate == 1 else self._value.value * self.rate

    def same(self, other: Exponents) -> bool:
        """Return whether both are the same tensor, or were computed twice from the same."""
        if self.rate != other.rate:
            return False
        mine, others = self._value.value, other._value.value
        return self.edge == other.edge or (mine.shape == others.shape and torch.equal(mine, others))

    def carrier(self, gradient: bool) -> Tensor:
        """Return the scores with their autograd graph: the same tensor in each call, so that a ledger recognizes it."""
        scaled = gradient and self.rate != 1
        if scaled not in self._carriers:
            self._carriers[scaled] = graft(self.value, Share.apply(self.way, self.rate) if scaled else self.way)
        return self._carriers[scaled]

    def without_shift(self, total: Sums, gradient: bool, moved: Sums | None = None) -> Tensor:
        """Return the scores as they were before the shift, if that is the same for all terms of each sum.

        Args:
            total: the sum over the terms.
            gradient: whether slots are gradients.
            moved: where the powers are moved before they are summed.
        """
        z, before = self.value, None if self.shifted is None or self.shifted.own else self.shifted.exponents()
        if before is None or self.shifted is None:
            return self.carrier(gradient)
        scaled, way = Total(self.shifted.steps), before.way
        x = scaled(before.value) * self.rate
        move = moved or (lambda v: v)
        if x.shape != z.shape or not _is_constant(move(x), move(z), total):
            return self.carrier(gradient)
        if gradient:  # relevance passes factors unchanged
            factor = scaled(torch.ones_like(before.value)) * self.rate
            way = bypass(_times, before.value, (factor,), [way])
        return graft(x.masked_fill(z.isinf(), -math.inf), way)

    def before_shift(self, total: Sums, shift: Any) -> Exponents | None:
        """Return the scores from which `shift` was subtracted; None if it was another one."""
        before = None if self.shifted is None or self.shifted.steps or self.rate != 1 else self.shifted.exponents()
        if before is None or before.value.shape != self.value.shape:
            return None
        d = before.value - self.value
        seen = d.isfinite()
        d, count = d.masked_fill(~seen, 0), total(seen.to(d.dtype)).clamp(min=1)
        shift = shift.detach() if isinstance(shift, Tensor) else torch.as_tensor(shift, dtype=d.dtype, device=d.device)
        mean, square = total(d) / count, total(d * d) / count
        tolerance = max(1e-10, 256 * torch.finfo(d.dtype).eps)
        if shift.numel() != 1 and shift.shape != mean.shape:
            return None
        finite = torch.where(mean.isfinite() & shift.isfinite(), shift, mean)
        same = torch.isclose(mean, finite, rtol=tolerance, atol=tolerance)
        return before if bool((same & torch.isclose(square, mean * mean, rtol=1e-4, atol=1e-6)).all()) else None


def _times(slot: Tensor, factor: Tensor) -> Slots:
    return (slot * factor,)


def _is_constant(x: Tensor, z: Tensor, total: Sums) -> bool:
    """Return whether ``x - z`` is the same for all terms of each sum, up to rounding; masked terms aside."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    shift = x.to(dtype) - z.to(dtype)
    if not x.numel():
        return True
    seen = shift.isfinite()
    shift, size = shift.masked_fill(~seen, 0), x.masked_fill(~seen, 0).abs().amax()
    mean = total(shift) / total(seen.to(dtype)).clamp(min=1)
    allowed = (4 * torch.finfo(x.dtype).eps + 256 * torch.finfo(dtype).eps) * (size + mean.abs().amax())
    return bool(((shift - mean).abs().masked_fill(~seen, 0) <= allowed).all())


class Powers:
    """A result that is linear in powers of a number: the steps after them; `inverse` if it is one over that.

    `shifted` is the same as what something was added to or subtracted from: it may be the scores of another softmax.
    """

    __slots__ = ("exponents", "inverse", "shifted", "steps")

    def __init__(self, exponents: Exponents, steps: tuple[Step, ...] = (), *, inverse: bool = False) -> None:
        self.exponents, self.steps, self.inverse = exponents, steps, inverse
        self.shifted: Shifted | None = None

    def then(self, step: Step) -> Powers | None:
        """Return the same after one more step; None if it is no longer known."""
        op = step.op
        known = step.moves
        if not known and not self.inverse:
            known = step.sums or step.scales or (_takes_numbers(step) and (op.traits.clips or _adds(step)))
        if not known:
            return None
        after = Powers(self.exponents, (*self.steps, step), inverse=self.inverse)
        after.shifted = self.shifted and self.shifted.then(step)
        return after

    def total_in(self, whole: Powers) -> Total | None:
        """Return how the divisor `whole` sums these powers; None if it does not."""
        mine, count = self.steps, len(self.steps)
        if self.inverse or not self.exponents.same(whole.exponents) or len(whole.steps) <= count:
            return None
        if not all(step.weighs or (step.moves and not step.writes) for step in mine) or not all(
            map(Step.same, mine, whole.steps)
        ):
            return None
        total = Total(whole.steps[count:])
        return total if any(step.sums for step in total.steps) else None

    @property
    def sums(self) -> bool:
        """Whether some step adds elements up."""
        return any(step.sums for step in self.steps)

    @property
    def moves(self) -> tuple[Step, ...]:
        """How the powers were moved, masks and factors aside."""
        return tuple(step for step in self.steps if not step.weighs)

    def masked(self) -> Tensor | None:
        """Return where a mask after the powers has made them 0; None if there is none."""
        if not self.steps:
            return None
        weight = Total(self.steps)(torch.ones_like(self.exponents.value))
        return weight == 0


def _takes_numbers(step: Step) -> bool:
    """Return whether its constants are the same everywhere, such as the epsilon of a denominator."""
    constants = (*step.args, *step.kwargs.values())
    return all(not isinstance(value, Tensor) or value.numel() == 1 for value in constants)


def _adds(step: Step) -> bool:
    signs = step.op.traits.signs
    return signs is not None and isinstance(step.place, int) and signs[step.place] == 1


class LogSum:
    """The logarithm of a sum of powers, moved perhaps: steps from the powers on."""

    __slots__ = ("exponents", "steps")

    def __init__(self, exponents: Exponents, steps: tuple[Step, ...]) -> None:
        self.exponents, self.steps = exponents, steps

    def then(self, step: Step) -> LogSum | None:
        """Return the same after one more step; None if it is no longer known."""
        return LogSum(self.exponents, (*self.steps, step)) if step.moves else None


class Softmax:
    """A softmax, or its logarithm: what it is of, and the sum over its terms; no scores where they are not needed."""

    __slots__ = ("logarithm", "scores", "total")

    def __init__(self, scores: Exponents | None, total: Sums, *, logarithm: bool = False) -> None:
        self.scores, self.total, self.logarithm = scores, total, logarithm

    def then(self, _: Step) -> None:
        """Return nothing: only its own logarithm, or powers, are known."""
