"""Calls that come to what they came to before.

What most calls come to is told by their place, their form, and what is known of their carriers. So that is kept once
one has run; the next is run and marked, and that is all. Where anything else might matter, nothing is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autograd.marks import MARK, SIGNAL, History
from ..autograd.trees import PLAIN
from ..ops import Argument
from ..rules import OpCall, Rule, Stop, is_carrier
from ..rules.again import Again
from ..rules.defaults import drops
from ..torch_internals import in_transform, packs_saved_tensors
from .call_stack import CallStack, Frame
from .chain_step import How, begun, ends
from .chains import MARK as CHAIN
from .chains import Chain, known_chain
from .chains import mark as mark_chain
from .curves import POINTS, Curve, Function
from .decisions import Action, Decision
from .forms import CARRIER
from .histories import told_by_form, told_without_constants
from .in_place import changes
from .operations import is_cut, note_cut
from .plain_calls import MISSED, plain_history
from .policy import FunctionInfo
from .recorded import Recorded
from .session import Session

_LARGEST_CACHE = 1024
_CONSTANT = object()
"""Stands for a constant tensor in the form of a call."""


class Kept(NamedTuple):
    """What a call came to.

    Attributes:
        made: what was decided.
        places: the places of the carriers among the arguments.
        known: what is known of each.
        before: the function of a source that the only carrier is, if the call can be a step of a chain.
        after: the function of a source that the output is.
        history: what is known of the output.
        again: what the rule does; None where the operation's own gradient is what is wanted.
    """

    made: Decision
    places: tuple[int, ...]
    known: tuple[History, ...]
    before: Curve | None
    after: Curve | None
    history: History
    again: Again | None


def run_kept(
    session: Session, stack: CallStack, how: How, frame: Frame, info: FunctionInfo, args: Any, kwargs: Any
) -> Any:
    """Run a call if what it comes to is kept, and mark its output; else return :data:`MISSED`.

    The arguments are those of :func:`run_plain`.
    """
    carriers, key = _read(args, kwargs)
    kept: Kept | None = frame.context.kept[info.function].get(key) if carriers else None
    if kept is None or session.observer is not None or session.rounded is not None or not _is_plain(frame):
        return MISSED
    chains = _chains_of(carriers, kept.known, stack, follow=info.chains)
    if chains is None:
        return MISSED
    before = chains[0] if len(chains) == 1 else None
    if info.chains and len(carriers) == 1:
        curve = None if before is None else before.curve
        if curve is not kept.before or stack.conditions:
            return MISSED
    _count(stack, frame, kept)
    after, x, again = None, carriers[0], kept.again
    if kept.after is not None and info.op is not None:
        after = begun(info.op, kept.after, before, x, None, how)
    if again is None or again.as_they_are:
        output = info.run(*args, **kwargs)
    else:
        place = kept.places[0]
        output = info.run(*args[:place], x.detach(), *args[place + 1 :], **kwargs)
    if again is not None:
        output = again.leave(carriers, output, args, kwargs)
    node = output.grad_fn
    if node is None:
        if (again is None or again.as_they_are) and is_cut(output):
            note_cut(session, frame, kept.made, args)
        if frame.part_of is not None:
            stack.constants.give(output, kept.history)
    elif again is not None or node is not x.grad_fn:  # else it is the carrier itself
        node.metadata[MARK] = kept.history
        if after is not None:
            if after.keeps:
                stack.chains.append(weakref.ref(after))
            mark_chain(output, after)
    return output


def _read(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Tensor], Any]:
    """Return the carriers of a call, and by what the call is kept; no carriers where tensors are in containers."""
    carriers: list[Tensor] = []
    form: list[Any] = [len(args), *kwargs]
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            if value.requires_grad:
                carriers.append(value)
                form.append(CARRIER)
            else:
                form.append(_CONSTANT)
        elif type(value) in PLAIN or (type(value) is tuple and all(type(part) in PLAIN for part in value)):
            form.append(value)
        else:
            return [], None
    return carriers, (carriers[0].dtype, carriers[0].device, *form) if carriers else None


def _chains_of(
    carriers: Sequence[Tensor], known: Sequence[History], stack: CallStack, *, follow: bool
) -> Sequence[Chain | None] | None:
    """Return the chains of carriers; None where other things are known of them, or they may not be told apart.

    Args:
        carriers: the carriers.
        known: what is to be known of each.
        stack: what runs in this thread.
        follow: whether carriers of one source may not be told apart.
    """
    chains: list[Chain | None] = []
    sources = set()
    for x, history in zip(carriers, known, strict=True):
        node: Any = x.grad_fn
        place, chain = x.output_nr, None
        if node is None:
            if history is not SIGNAL or all(x is not given for given in stack.root_inputs):
                return None
            node = x
        else:
            marks = node.metadata
            if marks.get(MARK) != history:
                return None
            chain = marks.get(CHAIN) if follow and place == 0 else None
        if x.layout is not torch.strided or (chain is not None and chain.checkpoint is not None):
            return None
        chains.append(chain)
        sources.add((node, place) if chain is None else chain.source)
    return chains if len(sources) == len(carriers) else None


def _count(stack: CallStack, frame: Frame, kept: Kept) -> None:
    """Count a call that is about to run."""
    made = kept.made
    stack.carriers_met = True
    if made.shadowed is not None:
        made.shadowed.calls += 1
    if made.count is not None:
        made.count.calls += 1
        if frame.part_of is not None:
            frame.part_of.counts.append(made.count)
    if made.action is not Action.RUN:
        frame.others = True
        stack.stopped |= isinstance(made.rule, Stop)


def _is_plain(frame: Frame) -> bool:
    """Return whether nothing records but autograd."""
    return frame.checkpoint is None and not packs_saved_tensors() and not in_transform()


def keep(session: Session, how: How, now: Recorded, made: Decision, call: OpCall | None, output: Any) -> None:
    """Keep what a call has come to, if all that are alike come to it on carriers of which the same is known.

    Args:
        session: the state of the registration.
        how: what else matters where it is a step of a chain.
        now: the call.
        made: what was decided.
        call: the same for a rule; None where the operation has run as it is.
        output: what the rest of the model uses.
    """
    info, context = now.info, now.frame.context
    if made.action not in (Action.RUN, Action.RULE) or made.served or not made.keep or session.observer is not None:
        return
    if not isinstance(output, Tensor) or not _is_told(now) or not _is_plain(now.frame):
        return
    if made.action is Action.RUN and _is_plain_call(session, now):
        return
    carriers, key = _read(now.args, now.kwargs)
    places = tuple(place for place, value in enumerate(now.args) if isinstance(value, Tensor) and value.requires_grad)
    if not carriers or len(places) < len(carriers):
        return
    if _chains_of(carriers, now.given, session.threads.stack, follow=info.chains) is None:
        return
    curves = _curves(now, how) if info.chains else (None, None)
    ruled = made.action is Action.RULE and not (call is not None and call.idle)
    again = None
    if ruled and call is not None and made.rule is not None and _has_run(call, made.rule):
        own = vars(type(made.rule)).get("again")  # a subclass may do something else
        again = None if own is None else own(made.rule, call, output)
    if curves is None or (again is None and (ruled or not output.requires_grad)):
        return
    if again is not None and not again.as_they_are and len(carriers) > 1:
        return
    kept = context.kept.setdefault(info.function, {})
    if len(kept) > _LARGEST_CACHE:
        kept.clear()
    kept[key] = Kept(made, places, tuple(now.given), *curves, now.history(session.policy.is_learned), again)


def _is_plain_call(session: Session, now: Recorded) -> bool:
    """Return whether a call whose own gradient is wanted is a plain one."""
    signals, stack = now.info.signals, session.threads.stack
    if signals is None or now.frame.part_of is not None:
        return False
    constant = next((x for x in now.args if isinstance(x, Tensor) and not x.requires_grad), None)
    return plain_history(session, stack, now.info, signals, now.carriers, constant, now.args) is not None


def _has_run(call: OpCall, rule: Rule) -> bool:
    """Return whether a call has run under this rule."""
    return call.rule is rule and (rule.knows_complex or not any(map(torch.is_complex, call.carriers)))


def _is_told(now: Recorded) -> bool:
    """Return whether all is told by the form of a call and what is known of its carriers."""
    info, op = now.info, now.info.op
    if op is None or op.held or info.copies or info.foreign or info.unfolds or info.own is not None:
        return False
    if info.is_layer or info.has_projections or (info.varies and not info.told_by_form):
        return False
    exponent = op.traits.exponent
    if info.begins_softmax and (not isinstance(exponent, Argument) or is_carrier(exponent.of(now.args, now.kwargs))):
        return False
    if now.form is None and (info.chains or info.varies or not told_without_constants(info.effect, now.given)):
        return False
    if (info.can_drop and drops(op, now.args, now.kwargs)) or changes(info, now.args, now.kwargs):
        return False
    return told_by_form(info.effect)


def _curves(now: Recorded, how: How) -> tuple[Curve | None, Curve | None] | None:
    """Return the functions of a source that carrier and output are, if any; None where more matters than these."""
    x, step = now.carriers[0], now.step
    if len(now.carriers) > 1:
        return (None, None) if step is None else None
    before = known_chain(x, None)
    curve = None if before is None else before.curve
    if how.conditions:
        return None
    if step is not None:
        alone = step.first and step.rule is None and step.near is None and (curve is None or curve is POINTS)
        return (curve, step.chain.curve) if alone else None
    function = Function.of(now.info, now.args, now.kwargs, x, now.form, lambda _: None)
    return (curve, None) if function is not None and ends(function, curve) else None
