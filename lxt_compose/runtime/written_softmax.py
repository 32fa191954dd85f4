"""Softmax that a model writes itself: ``exp(x - shift)`` over its own sum is one operation of the softmax family.

The exponents are noted at `exp`, and what is linear in the powers after it: masks, sums, sums by index, and these taken
back to the places of the terms (`powers.py`). So a division of powers by their sum is known. It runs as ``softmax`` of
the exponents, under the rule that the composite has for softmax; its value is the model's. A shift that is the same for
all terms is passed by, since ``softmax(x - c) = softmax(x)``, unless it takes its own gradient, which does that by
itself. Notes end with the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autograd.functions import graft
from ..autograd.nodes import EXACT, kind_of_node, origin_of
from ..autograd.trees import plain
from ..ops import Argument, Family, Op, SoftmaxPart, mutates, op_of
from ..rules import GRADIENT, find_carriers, is_carrier
from ..rules.softmax import log_of, log_softmax_of, logsumexp_of, softmax_of
from ..torch_internals.readings import number_in
from .histories import effect_of
from .linear_steps import Step, Total
from .policy import FunctionInfo, Policy
from .powers import Exponents, LogSum, Powers, Shifted, Softmax
from .softmax_notes import Note, Notes, dividend_and_divisor, product_with_powers, value_of
from .spread import Spread

_DIM, _KEEPDIM = Argument(1, "dim"), Argument(2, "keepdim", default=False)


class Found(NamedTuple):
    """A call that is the last step of a softmax: what stands for it, its arguments but the value, and its note."""

    info: FunctionInfo
    args: tuple[Any, ...]
    note: Note | None = None


Run = Callable[[FunctionInfo, tuple[Any, ...], dict[str, Any]], Any]


class WrittenSoftmax:
    """Follows powers through the forward pass, and finds what is a softmax of them, or its logarithm.

    Args:
        policy: what the composite says.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy, self._gradient = policy, policy.formulation == GRADIENT
        self._softmax = self._standing_for(torch.softmax, softmax_of)
        self._log_softmax = self._standing_for(torch.log_softmax, log_softmax_of)
        self._log_of = self._standing_for(torch.log_softmax, log_of)
        self._log_sum = self._standing_for(torch.logsumexp, logsumexp_of)
        copy = op_of(torch.clone)
        self._valued = FunctionInfo(value_of, "quotient of powers by hand", copy, None, value_of, exact=True)
        self._valued.effect = effect_of(copy)

    def _standing_for(self, function: Callable[..., Any], stands: Callable[..., Any]) -> FunctionInfo | None:
        """Return what is known of a function that stands for one of torch.

        None where a function of the user replaces that one: it cannot replace several steps.
        """
        info = self._policy.info(function)
        if info.key is not None and info.key.replacement is not None:
            return None
        assert info.op is not None
        return FunctionInfo(stands, f"{info.op.name} (by hand)", info.op, info.key, stands)

    def may_begin(self, info: FunctionInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return whether a call may be the first step of a softmax: ``2 ** x`` may, ``x ** 2`` may not."""
        exponent = None if info.op is None else info.op.traits.exponent
        return not isinstance(exponent, Argument) or is_carrier(exponent.of(args, kwargs))

    def find(
        self, info: FunctionInfo, notes: Notes, args: tuple[Any, ...], kwargs: dict[str, Any], run: Run
    ) -> Found | None:
        """Return what a call is, if it is the last step of a softmax or of its logarithm; else None.

        Args:
            info: what is known of the function that is called.
            notes: what was noted until now.
            args: its arguments.
            kwargs: its keyword arguments.
            run: runs an operation as a part of the model: powers may have been moved, and then their exponents are.
        """
        if info.op is None or kwargs or not 1 <= len(args) <= 2:
            return None
        op, found = info.op, [notes.of(x) for x in args]
        if op.traits.signs is not None:
            return self._of_sum(op, args, found) if len(args) == 2 else None
        if len(args) == 1:
            one = found[0]
            if op.traits.softmax_part is SoftmaxPart.LOGARITHM:
                return self._logarithm(args[0], one)
            if op.traits.base != math.e or not isinstance(one, Softmax) or not one.logarithm or self._softmax is None:
                return None
            assert one.scores is not None
            return self._found(self._softmax, one.scores.without_shift(one.total, self._gradient), one.total)
        divided = dividend_and_divisor(op, found)
        if divided is None:
            return None
        one, other = divided
        return self._quotient(one, other, run) if isinstance(one, Powers) else self._spread(one, other, run)

    def _found(self, info: FunctionInfo, x: Tensor, total: Callable[[Tensor], Tensor]) -> Found:
        """Return a softmax of the scores x."""
        return Found(info, (x, total), Softmax(None if self._gradient else Exponents(x), total))

    def _quotient(self, powers: Powers, whole: Powers, run: Run) -> Found | None:
        total, exponents = powers.total_in(whole), powers.exponents
        if self._softmax is None or total is None:
            return None
        moved = Total(powers.moves)
        if not total.in_groups(moved(exponents.value)):
            return None
        x = exponents.without_shift(total, self._gradient, moved)
        for step in powers.moves:
            args, kwargs = step.filled(x)
            x = run(self._policy.info(step.function), tuple(args), kwargs)
        masked = None if self._gradient else powers.masked()
        return self._found(self._softmax, x if masked is None else graft(x.masked_fill(masked, -math.inf), x), total)

    def _spread(self, spread: Spread, whole: Powers, run: Run) -> Found | None:
        """Return ``(e v) / sum of e`` as ``(e / sum of e) v``, if that gives the same."""
        spread = spread.of(whole)
        over = spread.over(whole)
        if self._softmax is None or over is None:
            return None
        (s, total), powers = over, spread.powers
        x, masked = powers.exponents.without_shift(total, self._gradient), None
        if not self._gradient and not powers.moves:
            masked = powers.masked()
        x = x if masked is None else graft(x.masked_fill(masked, -math.inf), x)
        found = self._found(self._softmax, x, total)
        s = run(found.info, (*found.args, s), {})
        product = spread.rerun(s, lambda function, args, kwargs: run(self._policy.info(function), args, kwargs))
        return Found(self._valued, (product,))

    def _logarithm(self, x: Any, known: Note | None) -> Found | None:
        """Return the logarithm of a sum of powers, or of a softmax."""
        if isinstance(known, Softmax) and not known.logarithm:
            if known.scores is None:  # relevance divided by the softmax is what its scores need
                return None if self._log_of is None else Found(self._log_of, (Exponents(x).carrier(True), known.total))
            scores, total = known.scores.carrier(self._gradient), known.total
            if self._log_softmax is None:
                return None
            return Found(self._log_softmax, (scores, total), Softmax(Exponents(scores), total, logarithm=True))
        if not isinstance(known, Powers) or self._log_sum is None or known.inverse:
            return None
        if known.exponents.rate != 1 or not known.sums:
            return None
        args = known.exponents.carrier(self._gradient), Total(known.steps)
        return Found(self._log_sum, args, LogSum(known.exponents, known.steps))

    def _of_sum(self, op: Op, args: tuple[Any, ...], found: list[Note | None]) -> Found | None:
        """Return scores less the logarithm of the sum of their powers.

        Or such a logarithm and the shift that it lacks.
        """
        one, other = found
        if isinstance(other, LogSum) and op.traits.signs == (1, -1):
            total, exponents = Total(other.steps), other.exponents
            mine = isinstance(args[0], Tensor) and args[0].requires_grad and origin_of(args[0]) == exponents.edge
            if self._log_softmax is None or not mine or not total.in_groups(exponents.value):
                return None
            scores = exponents.without_shift(total, self._gradient)
            return Found(self._log_softmax, (scores, total), Softmax(Exponents(scores), total, logarithm=True))
        if op.traits.signs != (1, 1) or not (isinstance(one, LogSum) or isinstance(other, LogSum)):
            return None
        logarithm, shift = (one, args[1]) if isinstance(one, LogSum) else (other, args[0])
        assert isinstance(logarithm, LogSum)
        total = Total(logarithm.steps)
        before = logarithm.exponents.before_shift(total, shift)
        if self._log_sum is None or before is None:
            return None
        return Found(self._log_sum, (before.carrier(self._gradient), total), LogSum(before, logarithm.steps))

    def read(
        self, info: FunctionInfo, notes: Notes, args: tuple[Any, ...], kwargs: dict[str, Any], *, keyed: bool
    ) -> Note | Callable[[Tensor], Note] | None:
        """Return what is to be noted of the output of a call that is about to run; None if nothing is.

        Powers under a key of the user's (`keyed`) are not followed: they have the rule that it says.
        """
        op = info.op
        if op is None or "out" in kwargs:
            return None
        carriers = find_carriers(args, kwargs)
        if not carriers:
            known = notes.of(args[0]) if args else None
            return known.then(Step(op, info.function, args, kwargs, 0)) if known is not None else None
        known = notes.of(carriers[0])
        base = _base(op, args, carriers)
        if base is not None:
            shifted = known.shifted if isinstance(known, Powers) else known if isinstance(known, Shifted) else None
            return None if keyed else Powers(Exponents(carriers[0], math.log(base), shifted))
        if op.family is Family.SOFTMAX:
            replaced = info.key is not None and info.key.replacement is not None
            return None if replaced else self._of_torch(op, carriers[0], args, kwargs)
        shift = _shift(info, args, carriers) if op.traits.signs is not None and info.begins_softmax else None
        spread = None if keyed else product_with_powers(info, notes, args, kwargs, carriers)
        if spread is not None or known is None or (isinstance(known, Shifted) and op.traits.signs is not None):
            return spread or shift
        place = _place(op, args, kwargs, carriers)
        if place is None:
            return shift
        if isinstance(known, Powers) and _inverts(op, place, args):
            return Powers(known.exponents, known.steps, inverse=True)
        led = known.then(Step(op, info.function, args, kwargs, place))
        if shift is not None and isinstance(led, Powers):
            led.shifted = shift
        return led or shift

    def _of_torch(
        self, op: Op, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Note | Callable[[Tensor], Note] | None:
        """Return what is to be noted of a logarithm that torch computes."""
        dim = _DIM.of(args, kwargs)
        if dim is None:
            return None
        if op.traits.softmax_part is SoftmaxPart.LOG_SUM:
            kept, summed = bool(_KEEPDIM.of(args, kwargs)), op_of(torch.sum)
            assert summed is not None
            return LogSum(Exponents(x), (Step(summed, torch.sum, (x, dim), {"keepdim": kept}, 0),))
        logarithm, total = op.traits.softmax_part is SoftmaxPart.LOG_SOFTMAX, partial(torch.sum, dim=dim, keepdim=True)
        if not logarithm and op.traits.softmax_sign != 1:
            return None
        if not self._gradient:
            return Softmax(Exponents(x), total, logarithm=logarithm)
        if not logarithm:
            return Softmax(None, total)
        # Its own gradient is that of the exponential function, which is one of a softmax with the logarithm as scores.
        return lambda output: Softmax(Exponents(output), torch.zeros_like, logarithm=True)


def _base(op: Op, args: tuple[Any, ...], carriers: list[Tensor]) -> float | None:
    """Return the number that is raised to the power of the only carrier; None if it is another operation."""
    if op.traits.base is not None or len(carriers) != 1:
        return op.traits.base
    exponent = op.traits.exponent
    if exponent is None or isinstance(exponent, float) or len(args) != 2 or args[exponent.position] is not carriers[0]:
        return None
    base = args[1 - exponent.position]
    base = number_in(base) if isinstance(base, Tensor) and base.numel() == 1 else plain(base)
    return float(base) if isinstance(base, (int, float)) and base > 0 and base != 1 else None


def _shift(info: FunctionInfo, args: tuple[Any, ...], carriers: list[Tensor]) -> Shifted | None:
    """Return the tensor that something is subtracted from which may be the same for all terms of a softmax."""
    signs = None if info.op is None else info.op.traits.signs
    if signs is None or signs[0] != 1 or len(args) < 2 or args[0] is not carriers[0]:
        return None
    x, shift = args[0], args[1]
    if isinstance(shift, Tensor) and shift.requires_grad and shift.shape == x.shape:
        moved = shift.grad_fn is not None and kind_of_node(shift.grad_fn) == EXACT
        if not moved:
            return None  # probably a residual: a shift was broadcast to this shape
    return Shifted(x, own=info.own_gradient, changed=info.can_mutate and mutates(info.function, args))


def _place(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], carriers: list[Tensor]) -> int | str | None:
    """Return where a call is given its only carrier, those aside that give a shape alone; None if there are more."""
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    places = [place for place, value in given if isinstance(value, Tensor) and value.requires_grad]
    if len(places) != len(carriers):
        return None
    if len(places) == 2 and op.traits.like is not None and places[1] in op.traits.like:
        return places[0]
    return places[0] if len(places) == 1 else None


def _inverts(op: Op, place: int | str, args: tuple[Any, ...]) -> bool:
    """Return whether a call gives one over its argument."""
    if op.family is Family.DIVISION and place in op.held:
        return len(args) == 1 or _is_number(args[1 - int(place)], 1)
    exponent = op.traits.exponent
    return exponent is not None and not isinstance(exponent, float) and _is_number(exponent.of(args, {}), -1)


def _is_number(value: Any, number: int) -> bool:
    """Return whether this is the number, or a tensor of one element that is."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and bool(number_in(value) == number)
    return bool(value == number)
