"""What is kept of a call that has run, if all that are alike come to the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..autograd.marks import History
from ..autograd.trees import tensors_in
from ..coverage.tally import Count
from ..ops import Argument, Family
from ..rules import OpCall, Rule, is_carrier
from ..rules.again import Again
from ..rules.defaults import drops
from ..torch_internals import in_transform, packs_saved_tensors
from .call_stack import Frame
from .chain_step import SUM, How, ends
from .chains import known_chain
from .curves import POINTS, Curve, Function
from .decisions import Action, Decision
from .forms import sketch
from .histories import told_by_form
from .in_place import changes
from .policy import FunctionInfo
from .recorded import Recorded
from .session import Session
from .written_softmax import WrittenSoftmax

_LARGEST_CACHE = 1024
_MOST = 8
"""So many calls are kept that differ by what is known of their carriers alone."""


@dataclass(eq=False, slots=True)
class Kept:
    """What a call came to.

    Attributes:
        made: what was decided.
        counts: the rows of the report that it is counted in; the last one is that of `made`, if it has one.
        known: what is known of each carrier.
        history: what is known of the output.
        learned: whether a parameter of the model was among the constants; None where that does not matter.
        plain: whether no rule acts, and it begins and ends no chain.
        notes: whether it may follow on a step of a softmax that the model writes itself.
        dtype: that of the carriers.
        rule: the rule that is applied.
        by_degree: whether factors count by their degree under that rule.
        again: what the rule does to all such calls, if that can be told.
        places: the places of the carriers among the arguments.
        follows: whether `before` matters.
        before: the function of a source that the only carrier is, if it is one.
        after: the function of a source that the output is.
    """

    made: Decision
    counts: tuple[Count, ...]
    known: list[History]
    history: History
    learned: bool | None
    plain: bool
    notes: bool
    dtype: torch.dtype
    rule: Rule | None
    by_degree: bool
    again: Again | None
    places: tuple[int, ...]
    follows: bool
    before: Curve | None
    after: Curve | None


class Calls:
    """What the calls of one function in one context came to, by a sketch of their arguments."""

    __slots__ = ("by_values", "found", "info")

    def __init__(self, info: FunctionInfo, *, by_values: bool) -> None:
        self.info, self.by_values = info, by_values
        self.found: dict[Any, list[Kept]] = {}

    def keep(self, key: Any, kept: Kept) -> None:
        """Keep what a call came to while there is room."""
        if len(self.found) > _LARGEST_CACHE:
            self.found.clear()
        alike = self.found.setdefault(key, [])
        if len(alike) >= _MOST:
            alike.clear()
        alike.append(kept)


def keep(
    session: Session, how: How, softmax: WrittenSoftmax, now: Recorded, made: Decision, call: OpCall | None, output: Any
) -> None:
    """Keep what a call has come to, if all that are alike come to it on carriers of which the same is known.

    Args:
        session: the state of the registration.
        how: what else matters where it is a step of a chain.
        softmax: finds softmaxes that the model writes itself.
        now: the call.
        made: what was decided.
        call: the same for a rule; None where the operation has run as it is.
        output: what the rest of the model uses.
    """
    info, context, ruled = now.info, now.frame.context, made.action is Action.RULE
    if session.observer is not None or not _may_be_kept(now, made) or (ruled and not isinstance(output, Tensor)):
        return
    curves = _curves(now, how) if info.chains and not info.copies else (False, None, None)
    rule, again = _rule_of(call, output) if ruled and call is not None else (None, None)
    if curves is None or (ruled and rule is None and not (call is not None and call.idle and output.requires_grad)):
        return
    plain = not ruled and not curves[0] and curves[2] is None
    dtype = now.carriers[0].dtype
    if not plain and (not records_alone(now.frame) or any(x.dtype is not dtype for x in now.carriers)):
        return
    calls = context.kept.get(info.function)
    if calls is None or (ruled and not calls.by_values):
        calls = context.kept[info.function] = Calls(info, by_values=ruled or info.by_values)
    carriers, key = sketch(now.args, now.kwargs, calls.by_values, info.by_values)
    if len(carriers) != len(now.carriers):
        return
    places = tuple(place for place, value in enumerate(now.args) if is_carrier(value))
    again = None if again is not None and again.enter is not None and len(places) != len(carriers) else again
    known, is_learned = list(now.given), session.policy.is_learned
    learned = has_learned(session, now.args, now.kwargs) if any(history.degree != 1 for history in known) else None
    notes = info.begins_softmax and softmax.may_begin(info, now.args, now.kwargs)
    by_degree = call is not None and call.by_degree
    calls.keep(key, Kept(
        made, _counts(session, made, rule), known, now.history(is_learned), learned, plain, notes, dtype, rule,
        by_degree, again, places, *curves,
    ))  # fmt: skip


def has_learned(session: Session, args: Any, kwargs: Any) -> bool:
    """Return whether a parameter of the model, or what was computed from some, is among the arguments."""
    return any(map(session.policy.is_learned, tensors_in((args, kwargs))))


def records_alone(frame: Frame) -> bool:
    """Return whether nothing records but autograd."""
    return frame.checkpoint is None and not packs_saved_tensors() and not in_transform()


def _counts(session: Session, made: Decision, rule: Rule | None) -> tuple[Count, ...]:
    count = made.count
    if count is not None and rule is not None and rule is not made.rule:
        count = session.tally.count(count.key._replace(rule=rule))
    return tuple(row for row in (made.shadowed, count) if row is not None)


def _may_be_kept(now: Recorded, made: Decision) -> bool:
    """Return whether what was decided holds for all calls that are given the same."""
    summed = now.step is not None and now.step.rule is SUM
    return made.action in (Action.RUN, Action.RULE) and not made.served and (made.keep or summed) and _is_told(now)


def _rule_of(call: OpCall, output: Tensor) -> tuple[Rule | None, Again | None]:
    """Return the rule that a call has run under, and what that does to all such calls if it tells.

    No rule if it did not act, or may not act on others.
    """
    rule = call.rule
    if rule is None or not (call.idle or call.inputs) or output.layout is not torch.strided:
        return None, None
    own = vars(type(rule)).get("again")  # a subclass may do something else
    if call.idle:
        return (rule if own is None else None), None
    return rule, None if own is None else own(rule, call, output)


def _is_told(now: Recorded) -> bool:
    """Return whether all is told by what a call is given, but for constants, and by what is known of its carriers."""
    info, op = now.info, now.info.op
    if op is None or op.held or info.foreign or info.unfolds or info.own is not None or info.has_projections:
        return False
    if (info.varies and (now.form is None or not info.told_by_form)) or not told_by_form(info.effect):
        return False
    traits, exponent = op.traits, op.traits.exponent
    if op.family is Family.SOFTMAX or traits.softmax_part is not None or traits.base is not None:
        return False  # a step of a softmax that the model writes itself, maybe
    if isinstance(exponent, Argument) and is_carrier(exponent.of(now.args, now.kwargs)):
        return False
    return not ((info.can_drop and drops(op, now.args, now.kwargs)) or changes(info, now.args, now.kwargs))


def _curves(now: Recorded, how: How) -> tuple[bool, Curve | None, Curve | None] | None:
    """Return whether it matters what the carrier is as a function of a source, and these of carrier and output.

    None where more matters.
    """
    x, step = now.carriers[0], now.step
    if how.conditions.noted:
        return None
    if len(now.carriers) > 1 or now.form is None:
        return (False, None, None) if step is None else None
    before = known_chain(x, None)
    curve = None if before is None else before.curve
    if step is not None:
        alone = step.first and step.rule in (None, SUM) and step.near is None and (curve is None or curve is POINTS)
        return (True, curve, step.chain.curve) if alone else None
    function = Function.of(now.info, now.args, now.kwargs, x, now.form, lambda _: None)
    return (True, curve, None) if function is not None and ends(function, curve) else None
