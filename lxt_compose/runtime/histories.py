"""What an operation does to what is known of a tensor's history: see :mod:`lxt_compose.autograd.marks`.

Movements and scaling keep how much of a gate a tensor is. What picks by value, puts other values in, shifts or averages
keeps it from bounded gates on: of an activation at large it makes a signal (a hidden layer). A product of gates is a
gate, and so are bounded gates that are joined; of several, the least counts. A sum of several carriers is a signal.

An elementwise function is known by the values that it has far below 0, at 0 and far above. Those of one function after
another are evaluated: ``relu6(x + 3) / 6`` and ``(tanh(x / 2) + 1) / 2`` open and close as a sigmoid does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..autograd.marks import INPUTS, SIGNAL, Gate, History, Values, gate_of
from ..autograd.trees import PLAIN
from ..ops import Elements, Elementwise, Family, Op
from ..ops.slopes import curve_of
from ..ops.traits import Argument
from ..torch_internals import modes_off


class Step(NamedTuple):
    """A call of an operation, the carriers among its arguments, and what is known of each of these."""

    op: Op
    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    carriers: Sequence[Tensor]
    known: Sequence[History]


Effect = Callable[[Step], History]


def effect_of(op: Op | None) -> Effect | None:
    """Return what an operation does to histories; None where its output is a signal whatever goes in."""
    if op is None:
        return None
    if op.family is Family.MOVEMENT:
        return _mixed if op.traits.mixes else _moved
    if op.traits.reduction is not None or op.traits.element_sum is not None:
        return _averaged
    if op.family is Family.PRODUCT and not op.addends:
        return _multiplied
    if op.family is Family.DIVISION:
        return _divided
    if op.family is Family.ACTIVATION:
        return _applied
    if op.traits.exponent is not None:
        return _raised
    if op.family is not Family.LINEAR:
        return None
    if op.traits.signs is not None:
        return _added
    if op.traits.elementwise is Elementwise.AFFINE:
        return _scaled
    return _averaged if op.traits.elements is Elements.AVERAGED else None


class Followed(Protocol):
    """A function, its operation, and what that does to histories."""

    op: Op | None
    effect: Effect | None

    @property
    def function(self) -> Callable[..., Any]:
        """The function."""


def after(
    info: Followed, args: Sequence[Any], kwargs: Mapping[str, Any], carriers: list[Tensor], known: list[History]
) -> History:
    """Return what is known of what a function makes of carriers of which this is known."""
    if info.effect is None:
        return SIGNAL
    if info.effect is _moved and len(known) == 1:
        return known[0]
    assert info.op is not None
    return info.effect(Step(info.op, info.function, args, kwargs, carriers, known))


def _moved(step: Step) -> History:
    return step.known[0] if len(step.known) == 1 else _joined(step.known)


def _mixed(step: Step) -> History:
    return _joined(step.known)


def _averaged(step: Step) -> History:
    return _joined(step.known) if len(step.known) == 1 else SIGNAL


def _joined(known: Sequence[History]) -> History:
    least = min(known)
    return least if least.gate >= Gate.BOUNDED else SIGNAL


# ---- elementwise: evaluated where the other arguments are numbers ----------------------------------------------------


def _multiplied(step: Step) -> History:
    if len(step.known) == 1:
        return _scaled(step)
    least = min(step.known).gate
    bounded = least >= Gate.BOUNDED
    return History(least, tuple(map(prod, zip(*(x.values for x in step.known), strict=True))) if bounded else INPUTS)


def _scaled(step: Step) -> History:
    gate, before = step.known[0]
    return History(gate, _values(step, before) or before)


def _divided(step: Step) -> History:
    """The dividend scaled; where only the divisor is a carrier, a function of it."""
    free = _free(step)
    return _scaled(_only(step, free)) if free else _applied(step)


def _added(step: Step) -> History:
    if len(step.known) > 1:
        return SIGNAL
    before = step.known[0]
    values = _values(step, before.values)
    if values is None:
        return _joined(step.known)
    if values == before.values:
        return before
    return History(gate_of(values) if before.gate >= Gate.BOUNDED else Gate.NONE, values)


def _raised(step: Step) -> History:
    """A power that counts factors is a product: ``x ** 2`` is ``x * x``."""
    exponent = step.op.traits.exponent
    if isinstance(exponent, Argument):
        exponent = exponent.of(step.args, step.kwargs)
    if not isinstance(exponent, (int, float)) or exponent < 1 or exponent != int(exponent):
        return _applied(step)
    gate, before = step.known[0]
    values = _values(step, before) if gate >= Gate.BOUNDED else None
    return History(gate, values or INPUTS)


def _applied(step: Step) -> History:
    """An activation: of a gate that opens, what it makes opens too (``sigmoid(x).clamp(0.1, 0.9)``)."""
    step = _only(step, _free(step) or range(len(step.carriers)))
    before = step.known[0]
    alone = None if len(step.known) > 1 or curve_of(step.op).opaque else _values(step, INPUTS)
    after = None if alone is None else _values(step, before.values)
    if alone is None or after is None:
        return before if before.gate >= Gate.BOUNDED else History(Gate.ACTIVATION, INPUTS)
    as_first, composed = History(gate_of(alone), alone), History(gate_of(after), after)
    if before.gate is Gate.NONE:
        return as_first if as_first.gate > composed.gate else composed
    return composed if composed.gate > as_first.gate else as_first


def _free(step: Step) -> Sequence[int]:
    """Return which carriers are no arguments that the default rule holds constant, such as divisors."""
    held = [value for place, value in (*enumerate(step.args), *step.kwargs.items()) if place in step.op.held]
    return [place for place, x in enumerate(step.carriers) if all(x is not value for value in held)]


def _only(step: Step, places: Sequence[int]) -> Step:
    """Return a step with some of its carriers alone."""
    if len(places) == len(step.carriers):
        return step
    return step._replace(carriers=[step.carriers[i] for i in places], known=[step.known[i] for i in places])


# ---- values ----------------------------------------------------------------------------------------------------------


class _Carrier:
    """Stands for the carrier among arguments."""


_CARRIER = _Carrier()


def _values(step: Step, before: Values) -> Values | None:
    """Return the values of a function after another; None if its other arguments are no numbers."""
    x = step.carriers[0]

    def plain(value: Any) -> Any:
        if value is x:
            return _CARRIER
        if type(value) not in PLAIN:
            raise TypeError
        return value

    try:
        args = tuple([plain(value) for value in step.args])
        kwargs = tuple([(name, plain(value)) for name, value in step.kwargs.items()])
    except TypeError:
        return None
    return _evaluate(step.function, args, kwargs, before)


@lru_cache(maxsize=4096)
def _evaluate(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...], before: Values
) -> Values | None:
    with torch.no_grad(), modes_off():
        x = torch.tensor(before, dtype=torch.float64, device="cpu")
        given = [x if value is _CARRIER else value for value in args]
        try:
            after = function(*given, **{name: x if value is _CARRIER else value for name, value in kwargs})
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return None
    if not isinstance(after, Tensor) or after.shape != x.shape or not after.is_floating_point():
        return None
    return tuple(after.tolist())
