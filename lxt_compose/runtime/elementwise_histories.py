"""Histories of the results of elementwise functions, which are evaluated where their other arguments are numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from ..autograd.marks import INPUTS, Gate, History, Values, gate_of, signal
from ..autograd.trees import plain
from ..ops import Op
from ..ops.slopes import curve_of
from ..ops.traits import Argument
from .elementwise_values import values_after


class Step(NamedTuple):
    """A call of an operation, the carriers among its arguments, and what is known of each of these."""

    op: Op
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    carriers: Sequence[Tensor]
    known: Sequence[History]


LARGEST = 1e100
"""Larger degrees are not told apart."""
Effect = Callable[[Step], History]


def given(step: Step, places: Collection[int | str]) -> list[Any]:
    """Return the arguments of a call at these positions, or of these names."""
    return [value for place, value in (*enumerate(step.args), *step.kwargs.items()) if place in places]


def least_degree(known: Sequence[History]) -> float:
    """Return the degree of a sum: the least of its terms.

    So a length has the degree that its elements have, however it is written: ``(a ** 2 + b ** 2).sqrt()``.
    """
    return min(history.degree for history in known)


def joined(known: Sequence[History]) -> History:
    """Return the history of several carriers joined, perhaps with constants."""
    least, degree = min(known), least_degree(known)
    return least._replace(degree=degree) if least.gate >= Gate.BOUNDED else signal(degree)


def summed(step: Step) -> History:
    """Return the history of a sum."""
    return signal(least_degree(step.known))


def _values(step: Step, before: Values) -> Values | None:
    return values_after(before, step.function, step.args, step.kwargs, step.carriers[0])


def multiplied(step: Step) -> History:
    """Return the history of a product."""
    if len(step.known) == 1:
        return scaled(step)
    least = min(step.known).gate
    bounded = least >= Gate.BOUNDED
    values = tuple(map(prod, zip(*(x.values for x in step.known), strict=True))) if bounded else INPUTS
    return History(least, values, min(LARGEST, sum(x.degree for x in step.known)))


def scaled(step: Step) -> History:
    """Return the history of a product with a constant; a tensor leaves the values as they are."""
    known = step.known[0]
    values = _values(step, known.values)
    return known if values is None or values == known.values else known._replace(values=values)


def divided(step: Step) -> History:
    """Return the history of a quotient: the dividend, scaled; or a function of the divisor alone."""
    inverse = any(step.carriers[0] is value for value in given(step, step.op.held))
    return applied(step) if inverse else scaled(step)


def added(step: Step) -> History:
    """Return the history of a sum or difference of two; a number may make a gate (``1 + tanh(x)``)."""
    if len(step.known) > 1:
        return summed(step)
    if any(isinstance(value, Tensor) and value is not step.carriers[0] for value in step.args):
        return joined(step.known)
    before = step.known[0]
    values = _values(step, before.values)
    if values is None:
        return joined(step.known)
    if values == before.values:
        return before
    return before._replace(gate=gate_of(values) if before.gate >= Gate.BOUNDED else Gate.NONE, values=values)


def raised(step: Step) -> History:
    """Return the history of a power, which is no gate: ``x ** 2`` is ``x * x``, and a root may be that of a length."""
    exponent = step.op.traits.exponent
    if isinstance(exponent, Argument):
        exponent = exponent.of(step.args, step.kwargs)
    exponent = plain(exponent)
    if not isinstance(exponent, (int, float)) or exponent <= 0:
        return applied(step)
    known = step.known[0]
    degree = min(LARGEST, known.degree * exponent)
    values = _values(step, known.values) if known.gate >= Gate.BOUNDED else None
    return History(known.gate, values or INPUTS, degree)


def applied(step: Step) -> History:
    """Return the history of an activation; one of a gate that opens opens too (``sigmoid(x).clamp(0.1, 0.9)``)."""
    before = step.known[0]
    alone = None if len(step.known) > 1 or curve_of(step.op).opaque else _values(step, INPUTS)
    values = None if alone is None else _values(step, before.values)
    if alone is None or values is None:
        return before if before.gate >= Gate.BOUNDED else History(Gate.ACTIVATION, INPUTS, before.degree)
    as_first = History(gate_of(alone), alone, before.degree)
    composed = History(gate_of(values), values, before.degree)
    if before.gate is Gate.NONE:
        return as_first if as_first.gate > composed.gate else composed
    return composed if composed.gate > as_first.gate else as_first
