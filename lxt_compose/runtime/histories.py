"""The histories of operations' results; see :mod:`lxt_compose.autograd.marks`.

Movements and scaling keep how much of a gate a tensor is. Operations that pick by value, put other values in, shift or
average keep it for bounded gates only: of other activations they make a signal (a hidden layer). A product of gates is
a gate, and so are bounded gates that are joined; of several, the least counts. A sum of several carriers is a signal.

Degrees add up in products, of the factors that take part: one that a rule stops (a gate) has none. They start anew at 1
where parameters of the model come in (layers, norms with weights) and behind a softmax. A sum has the least degree of
its terms. An operation that is linear in one carrier keeps its degree, and so do activations: equal functions
would else get unequal relevance, as in ``x.sum(1)`` and ``x @ ones``, or in ``silu(x)`` and ``x * sigmoid(x)``.

An elementwise function is known by the values that it has far below 0, at 0 and far above. Those of one function after
another are evaluated: ``relu6(x + 3) / 6`` and ``(tanh(x / 2) + 1) / 2`` open and close as a sigmoid does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from ..autograd.marks import SIGNAL, Gate, History, signal
from ..autograd.trees import tensors_in
from ..ops import Elements, Elementwise, Family, NormKind, Op
from .elementwise_histories import (
    Effect,
    Step,
    added,
    applied,
    divided,
    given,
    joined,
    least_degree,
    multiplied,
    raised,
    scaled,
    summed,
)
from .forms import Form


def effect_of(op: Op | None) -> Effect | None:
    """Return the function from histories of carriers to that of the output; None if that is a plain signal."""
    if op is None:
        return None
    if op.traits.element_sum is not None:
        return _reduced
    if op.multiplies and (op.family is not Family.PRODUCT or op.addends):
        return _contracted
    if op.traits.exponent is not None:
        return raised
    if op.traits.signs is not None:
        return added
    if op.traits.modulus:
        return _modulus
    if op.traits.norm in _SCALING_NORMS:
        return _normalized
    if op.family is Family.LINEAR:
        affine = op.traits.elementwise is Elementwise.AFFINE
        return scaled if affine else _averaged if op.traits.elements is Elements.AVERAGED else summed
    if op.family is Family.MOVEMENT:
        return _mixed if op.traits.mixes else _moved
    return _OF_FAMILIES.get(op.family)


def told_by_form(effect: Effect | None) -> bool:
    """Return whether an effect depends on the form of a call and what is known of its carriers, and on nothing else."""
    return effect not in _BY_TENSOR


def told_by_places(effect: Effect | None) -> bool:
    """Return whether an effect depends on carriers and their places, and on no other argument.

    That parameters come in gives a signal of degree 1; see :func:`after`.
    """
    return effect is None or effect in _BY_PLACES


def mixed(known: History, given: Any, is_learned: Callable[[Tensor], bool]) -> History:
    """Return what sums and layers make of one carrier: with a parameter of the model, a new signal.

    Args:
        known: what is known of the carrier.
        given: the arguments.
        is_learned: whether a constant is a parameter of the model.
    """
    return SIGNAL if known.degree == 1 or any(map(is_learned, tensors_in(given))) else signal(known.degree)


class Followed(Protocol):
    """A function, its operation, and what that does to histories."""

    op: Op | None
    effect: Effect | None

    @property
    def function(self) -> Callable[..., Any]:
        """The function."""


def after(
    info: Followed,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    carriers: list[Tensor],
    known: list[History],
    is_learned: Callable[[Tensor], bool],
    form: Form | None = None,
) -> History:
    """Return the history of the result of a function, from the histories of its carriers.

    Args:
        info: the function.
        args: what it is called with.
        kwargs: the same by keyword.
        carriers: the carriers among that.
        known: the history of each.
        is_learned: whether a constant is a parameter of the model: what that comes into has degree 1.
        form: the form of the call, if it has one.
    """
    effect, first = info.effect, known[0]
    if effect is None:
        return SIGNAL
    if len(known) == 1:
        if effect is _moved or (first is SIGNAL and (effect in _JOIN or (effect in _SHIFT and _by_tensor(args)))):
            return first
        if effect in _MIX:
            return mixed(first, (args, kwargs), is_learned)
    elif effect in _KEEP and known.count(SIGNAL) == len(known):
        return SIGNAL
    assert info.op is not None
    by_form = (
        form is not None and effect not in _BY_TENSOR and (len(known) == 1 or len({*map(id, carriers)}) == len(known))
    )
    key = (info.function, form, *known) if by_form else None
    history = _found.get(key)
    if history is None:
        step = Step(info.op, info.function, args, kwargs, carriers, known)
        history = effect(step if len(known) == 1 else _free(step))
        if key is not None:
            if len(_found) > _LARGEST_CACHE:
                _found.clear()
            _found[key] = history
    if history.degree != 1 and form is None and (effect is not _attended or info.op.traits.has_projections):
        for x in tensors_in((args, kwargs)):
            if is_learned(x) and all(x is not carrier for carrier in carriers):
                history = history._replace(degree=1)
                return SIGNAL if history == SIGNAL else history
    return history


def _by_tensor(args: Sequence[Any]) -> bool:
    """Return whether a constant tensor scales or shifts a carrier; its elements are not looked at."""
    return len(args) == 2 and isinstance(args[0], Tensor) and isinstance(args[1], Tensor)


_LARGEST_CACHE = 4096
_found: dict[Any, History] = {}
"""What functions do to histories, by the function, the form of the call, and what is known of its carriers."""


def taking_part(known: list[History], shares: list[float] | None) -> list[History]:
    """Return the histories of carriers that a rule gave these shares; a factor with a share of 0 is a constant."""
    if shares is None or 0 not in shares or len(shares) != len(known):
        return known
    return [history if share else history._replace(degree=0) for history, share in zip(known, shares, strict=True)]


def _free(step: Step) -> Step:
    """Return a step without the carriers that are held constant (divisors) or give only a shape, if others are left."""
    if takes_all(step.op):
        return step
    like = step.op.traits.like
    held = given(step, step.op.held | ({like.position, like.keyword} if like is not None else set()))
    free = [place for place, x in enumerate(step.carriers) if all(x is not value for value in held)]
    return _only(step, free or range(len(step.carriers)))


def takes_all(op: Op | None) -> bool:
    """Return whether no argument of an operation is held constant or gives a shape alone."""
    return op is not None and not op.held and op.traits.like is None


def _only(step: Step, places: Sequence[int]) -> Step:
    return step._replace(carriers=[step.carriers[i] for i in places], known=[step.known[i] for i in places])


# ---- not elementwise -------------------------------------------------------------------------------------------------


def _moved(step: Step) -> History:
    return step.known[0] if len(step.known) == 1 else joined(step.known)


def _normalized(step: Step) -> History:
    """Return the history of a tensor over its own length: it is scaled, as where a model writes the division."""
    return step.known[0]


def _mixed(step: Step) -> History:
    return joined(step.known)


def _averaged(step: Step) -> History:
    return joined(step.known) if len(step.known) == 1 else summed(step)


def _contracted(step: Step) -> History:
    """Return the history of a sum of products, to which something may be added."""
    if len(step.known) == 1:
        return signal(step.known[0].degree)
    added = given(step, step.op.addends)
    terms = [history.degree for x, history in zip(step.carriers, step.known, strict=True) if any(x is a for a in added)]
    factors = sum(history.degree for history in step.known) - sum(terms)
    terms += [factors] if len(terms) < len(step.known) else []
    return signal(min(terms))


def _homogeneous(step: Step) -> History:
    """Return the history of a length, a deviation or a distance; a length of gates is a gate, as their mean is."""
    degree = step.op.traits.degree
    degree = least_degree(step.known) * (degree if isinstance(degree, (int, float)) else 1)
    known = step.known[0]
    if len(step.known) > 1 or step.op.traits.order is None or known.gate < Gate.BOUNDED:
        return signal(degree)
    return known._replace(values=tuple(map(abs, known.values)), degree=degree)


def _modulus(step: Step) -> History:
    """Return the history of an absolute value: for complex numbers a length, for others an activation."""
    return _homogeneous(step) if step.carriers[0].is_complex() else applied(step)


def _attended(step: Step) -> History:
    """Return the history of ``A V``, where A is a softmax, which has degree 1 if anything in it carries relevance."""
    values = given(step, (2, "value"))
    mine = [history.degree for x, history in zip(step.carriers, step.known, strict=True) if any(x is v for v in values)]
    scores = sum(history.degree for history in step.known) - sum(mine)
    return signal(sum(mine) + (scores > 0))


def _reduced(step: Step) -> History:
    """Return the history of elements of one tensor that are multiplied, or reduced as an argument says."""
    form = step.op.traits.element_sum
    known, x = joined(step.known), step.carriers[0]
    if step.op.family_of_call(step.args, step.kwargs) is not Family.PRODUCT:
        return _averaged(step)
    if form is None or step.op.traits.reduction is not None:
        return known._replace(degree=1)
    like = x.new_empty(x.shape, device="meta", requires_grad=False)
    kept = form(*[like if value is x else value for value in step.args], **step.kwargs) if x.numel() else like
    return known._replace(degree=1 if kept.shape == x.shape else known.degree * (x.numel() // kept.numel()))


_SCALING_NORMS = (NormKind.RMS, NormKind.LENGTH, NormKind.LIMITED)
_OF_FAMILIES: dict[Family, Effect] = {
    Family.PRODUCT: multiplied,
    Family.DIVISION: divided,
    Family.ACTIVATION: applied,
    Family.NORMALIZATION: summed,
    Family.HOMOGENEOUS: _homogeneous,
    Family.ATTENTION: _attended,
}
_BY_TENSOR = frozenset({_reduced, _modulus})
"""These depend on the shape or the dtype of the carrier."""
_JOIN = frozenset({_mixed, _averaged})
_SHIFT = frozenset({multiplied, added})
_MIX = frozenset({summed, _contracted})
_KEEP = frozenset({_moved, _mixed, _averaged, summed, added})
"""Of several signals these make a signal."""
_BY_PLACES = _JOIN | _MIX | {_moved, _normalized, _homogeneous, _attended}
