"""Softmax that a model writes itself: ``exp(x - shift)`` over its own sum is one operation of the softmax family.

The exponents are noted at `exp`, and what is linear in the powers after it: masks, sums, sums by index, and these taken
back to the places of the terms (`powers.py`). So a division of powers by their sum is known. It runs as ``softmax`` of
the exponents, under the rule that the composite has for softmax; its value is the model's. A shift that is the same for
all terms is passed by, since ``softmax(x - c) = softmax(x)``, unless it takes its own gradient, which does that by
itself. Notes end with the forward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..autograd.functions import Share, graft
from ..autograd.nodes import EXACT, kind_of_node
from ..autograd.saved_values import keep
from ..ops import Family, Op
from ..rules import GRADIENT, find_carriers
from ..rules.softmax import softmax_of
from .policy import FunctionInfo, Policy
from .powers import Exponents, Note, Notes, Powers, Shifted, Step


class WrittenSoftmax:
    """Follows powers through the forward pass, and finds the divisions that make a softmax of them.

    Args:
        policy: what the composite says.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        info = policy.info(torch.softmax)
        self.on = info.key is None or info.key.replacement is None
        """Not where a function of the user's takes the place of softmax: it cannot take that of several steps."""
        self.info = FunctionInfo(softmax_of, "softmax (by hand)", info.op, info.key, softmax_of)

    def scores(self, info: FunctionInfo, notes: Notes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the scores and their sum, for :func:`softmax_of`, if a call divides powers by that; else None."""
        divided = _divided(info.op, notes, args) if info.op is not None and not kwargs else None
        total = None if divided is None else divided[0].total_in(divided[1])
        if divided is None or total is None:
            return None
        powers, exponents = divided[0], divided[0].exponents
        if not total.in_groups(exponents.value):
            return None
        x, way = exponents.without_shift(total)
        masked = powers.masked() if self._policy.formulation != GRADIENT else None
        return graft(x if masked is None else x.masked_fill(masked, -math.inf), way), total

    def read(
        self, info: FunctionInfo, notes: Notes, args: tuple[Any, ...], kwargs: dict[str, Any], *, keyed: bool
    ) -> Note | None:
        """Return what is to be noted of the output of a call that is about to run; None if nothing is.

        Powers under a key of the user's (`keyed`) are not followed: they have the rule that it says.
        """
        op = info.op
        if op is None or "out" in kwargs:
            return None
        carriers = find_carriers(args, kwargs)
        if not carriers:
            known = notes.of(args[0]) if args else None
            return known.then(Step(op, info.run, args, kwargs, 0)) if known is not None else None
        known = notes.of(carriers[0])
        base = _base(op, args, carriers)
        if base is not None and keyed:
            return None
        if base is not None:
            shifted = known if isinstance(known, Shifted) else None
            return Powers(Exponents(carriers[0], math.log(base), self._policy.formulation, shifted))
        if known is None or (isinstance(known, Shifted) and info.begins_softmax):
            return _shift(op, args, carriers) if info.begins_softmax else None
        place = _place(op, args, kwargs, carriers)
        if place is None:
            return None
        if isinstance(known, Powers) and _inverts(op, place, args):
            return Powers(known.exponents, known.steps, inverse=True)
        return known.then(Step(op, info.run, args, kwargs, place))


def _divided(op: Op, notes: Notes, args: tuple[Any, ...]) -> tuple[Powers, Powers] | None:
    """Return dividend and divisor of a quotient, if both are known powers."""
    if len(args) != 2 or op.family not in (Family.DIVISION, Family.PRODUCT):
        return None
    found = [notes.of(x) for x in args]
    one, other = reversed(found) if 0 in op.held else found
    if not (isinstance(one, Powers) and isinstance(other, Powers)):
        return None
    if op.family is Family.PRODUCT and one.inverse:
        one, other = other, one
    return (one, other) if other.inverse is (op.family is Family.PRODUCT) else None


def _base(op: Op, args: tuple[Any, ...], carriers: list[Tensor]) -> float | None:
    """Return the number that is raised to the power of the only carrier; None if it is another operation."""
    if op.traits.base is not None or len(carriers) != 1:
        return op.traits.base
    exponent = op.traits.exponent
    if exponent is None or isinstance(exponent, float) or len(args) != 2 or args[exponent.position] is not carriers[0]:
        return None
    base = args[1 - exponent.position]
    base = base.item() if isinstance(base, Tensor) and base.numel() == 1 else base
    return float(base) if isinstance(base, (int, float)) and base > 0 and base != 1 else None


def _shift(op: Op, args: tuple[Any, ...], carriers: list[Tensor]) -> Shifted | None:
    """Return the tensor that something is subtracted from which may be the same for all terms of a softmax."""
    if op.traits.signs is None or op.traits.signs[0] != 1 or len(args) < 2 or args[0] is not carriers[0]:
        return None
    x, shift = args[0], args[1]
    if isinstance(shift, Tensor) and shift.requires_grad and shift.shape == x.shape:
        moved = shift.grad_fn is not None and kind_of_node(shift.grad_fn) == EXACT
        if not moved:
            return None  # a residual, as it seems: a shift was spread to this shape
    return Shifted(Share.apply(x, 1.0), keep(x))


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
    """Whether a call gives one over its argument."""
    if op.family is Family.DIVISION and place in op.held:
        return len(args) == 1 or args[1 - int(place)] == 1
    exponent = op.traits.exponent
    return exponent is not None and not isinstance(exponent, float) and exponent.of(args, {}) == -1
