"""Running an operation as was decided: under its rule, replaced, taken apart, or as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..autograd.functions import graft, rebind
from ..autograd.marks import SIGNAL, Gate, history_of, mark
from ..autograd.trees import map_tensors, tensors_in
from ..coverage.rows import Status
from ..coverage.tally import OpKey
from ..errors import RegistrationError, place
from ..lxt.drop_in import in_formulation
from ..ops import Family, is_reversed, mutates
from ..rules import RELEVANCE, OpCall, Rule, Stop, find_carriers, is_carrier
from ..rules.chained import Chained
from ..rules.gated import gates_among
from ..torch_internals import checkpoint_hook, custom_function, in_transform
from ..torch_internals.attention import attention_body
from .call_stack import Frame
from .checkpointing import rejoin
from .decisions import STOP, Action, Decision, hold, written
from .execution import enter, leave, write_into
from .in_place import before_change, changes, on_copy
from .policy import FunctionInfo
from .session import Session
from .step_checks import EIGHT_BITS, check_steps, is_narrow, misfit
from .unseen import unseen_behind

BARE = "in a checkpointed function that is no module"
SPARSE = "on sparse tensors"
NO_BACKWARD = "its kernel has no backward, so relevance ends there"


def check_unseen(session: Session, carrier: Tensor, frame: Frame) -> None:
    """Count the operations that made a carrier and that the function mode did not see."""
    for name, note in unseen_behind(carrier, session.stack.began):
        if frame.context.shadowed_by is None:
            session.tally.uncovered(frame.path, name, note)


def run(session: Session, frame: Frame, made: Decision, call: OpCall) -> Any:
    """Run an operation as was decided, and count it."""
    if made.shadowed is not None:
        made.shadowed.calls += 1
    action = made.action
    if action is Action.RUN:
        record(session, frame, made)
        return run_as_it_is(session, frame, made, call)
    if action is Action.SHADOWED:
        if made.info.has_projections:
            return run_body(session, frame, attention_body(), *call.args, **call.kwargs)
        output = made.info.run(*call.args, **call.kwargs)
        if made.info.foreign and is_cut(output):
            note_cut(session, frame, made, call.args)
        return output
    if made.served:
        frame.others, frame.served = frame.others or frame.served, True
    else:
        frame.others |= made.info.op is not None
    if action is Action.RULE:
        return _run_ruled(session, frame, made, call)
    if action is Action.REPLACE:
        record(session, frame, made)
        return _run_replaced(made, call)
    if action is Action.STEPS:
        return _run_steps(session, frame, made, call)
    if action is Action.REFUSE and not in_transform():
        raise RegistrationError(
            f"{made.info.name} inside the forward pass, in {place(frame.path)}: with rules in force it would not give "
            f"the model's own values; bind a rule that takes the whole module: {{{frame.path!r}: Epsilon()}}"
        )
    return run_uncovered(session, frame, made, call)


def record(session: Session, frame: Frame, made: Decision, rule: Rule | None = None) -> None:
    """Count an operation that runs, and tell the observer.

    Calls that are kept, which no observer sees, count themselves (`kept_calls.py`).
    """
    if session.stack.seen is not None:
        session.stack.seen.told(rule or made.rule, made.status)
    count = made.count
    if count is None:
        return  # the rows of the module or of the attention stand for what runs inside
    if rule is not None and rule is not made.rule:
        count = session.tally.count(count.key._replace(rule=rule))
    count.calls += 1
    if frame.part_of is not None:
        frame.part_of.counts.append(count)


def run_as_it_is(session: Session, frame: Frame, made: Decision, call: OpCall) -> Any:
    """Run an operation whose own gradient is wanted; report it as uncovered if it turns out to have none."""
    output = made.info.run(*call.args, **call.kwargs)
    if is_cut(output):
        note_cut(session, frame, made, call.args)
    elif is_narrow(output):
        note_cut(session, frame, made, call.args, EIGHT_BITS)
    return output


def is_cut(output: Any) -> bool:
    """Return whether an operation on carriers put out real, complex or quantized numbers, and none requires grad."""
    if isinstance(output, Tensor) and output.requires_grad:
        return False
    found = [x for x in tensors_in(output) if x.is_floating_point() or x.is_complex() or x.is_quantized]
    return bool(found) and not any(tensor.requires_grad for tensor in found)


def note_cut(session: Session, frame: Frame, made: Decision, args: tuple[Any, ...], note: str = NO_BACKWARD) -> None:
    """Count an operation as uncovered instead of covered: its kernel cuts relevance off, or for the reason in the note.

    Not where a constant is moved and a carrier gave the shape or the dtype alone: ``constant.type_as(x)``.
    """
    if made.info.exact and args and isinstance(args[0], Tensor) and not args[0].requires_grad:
        return
    if made.count is not None:
        made.count.calls -= 1
        if frame.part_of is not None:
            frame.part_of.counts.remove(made.count)
    if session.stack.seen is not None:
        session.stack.seen.told(None, Status.UNCOVERED)
    session.tally.uncovered(frame.path, made.info.name, note)


def run_uncovered(session: Session, frame: Frame, made: Decision, call: OpCall, note: str = "") -> Any:
    """Run an operation that no rule covers, and say so if relevance passes it."""
    info = made.info
    if session.stack.seen is not None:
        session.stack.seen.told(None, Status.UNCOVERED)
    if info.cuts:
        session.tally.cut[f"{info.name} in {frame.path or '(model)'}"] = None
    given = {id(x): (x, x._version) for x in tensors_in((call.args, call.kwargs)) if not x.is_inference()}
    output = info.run(*call.args, **call.kwargs)
    results = [output, *(x for x, version in given.values() if info.foreign and x._version != version)]
    cut = (info.foreign or any(x.is_quantized for x in tensors_in(output))) and is_cut(results)
    if cut or any(t.requires_grad and (info.op is not None or id(t) not in given) for t in tensors_in(output)):
        frame.others = True
        note = NO_BACKWARD if cut else note or (info.op.reason if info.op is not None else "")
        session.tally.uncovered(frame.path, info.name, note, list(tensors_in(output)))
    return output


def run_unrecorded(session: Session, frame: Frame, info: FunctionInfo, args: Any, kwargs: Any) -> Any:
    """Run a function while grad is off; in a reentrant checkpoint it will be recomputed."""
    if changes(info, args, kwargs):
        before_change(session, args, kwargs)
    frame.served = True  # nothing says that it was not
    output = info.run(*args, **kwargs)
    if session.stack.recorded and info.op is not None and find_carriers(args, kwargs):
        function = custom_function()
        if function is None:
            session.tally.cut[f"{info.name} without gradients in {frame.path or '(model)'}"] = None
        elif function.next_functions:  # and not called by another such function
            session.stack.functions.setdefault(function, (frame.path, function.metadata))
    may_carry = info.op is not None and not info.exact and frame.context.shadowed_by is None
    if may_carry and any(t.is_floating_point() for t in tensors_in(output)) and not rejoin(session, frame):
        session.tally.uncovered(frame.path, info.name, BARE)
    return output


def _run_ruled(session: Session, frame: Frame, made: Decision, call: OpCall) -> Any:
    info, rule = made.info, _rule_for(made, call)
    call.rule, call.parts = rule, session.parts
    session.stack.stopped |= isinstance(rule, Stop)
    if not rule.knows_complex and any(map(torch.is_complex, call.carriers)):
        return run_uncovered(session, frame, made, call)
    idle = call.idle = rule.idle(call)
    if not idle and (obstacle := _obstacle(session, frame, call.carriers)):
        return run_uncovered(session, frame, made, call, obstacle)
    record(session, frame, made, rule)
    if idle:
        return run_as_it_is(session, frame, made, call)
    run = info.run
    if info.has_projections:
        site, within = frame.site, rule if Family.ATTENTION in rule.families else None
        inside = None if within is None else frame.context.inside
        context = site.context_in(frame.path if within is None else inside, within, keys_inside=made.key is None)
        run = partial(run_body, session, frame.within(context), attention_body())
        if within is not None:  # projections, products and softmax get their rules
            return run(*call.args, **call.kwargs)
    args, kwargs = enter(rule, call, session.stack.constants)
    frame.call, outer = call, frame.call
    try:
        if (kwargs or info.can_mutate) and changes(info, args, kwargs):
            before_change(session, args, kwargs)  # again: the rule has saved the inputs on entry
            call.target = next(written(call.args, call.kwargs), None)
        output = run(*args, **kwargs)
        if getattr(output, "layout", torch.strided) is not torch.strided:  # no rule knows other layouts
            note_cut(session, frame, made, call.args, SPARSE)
            return info.run(*call.args, **call.kwargs)
        if not getattr(output, "requires_grad", False) and any(map(is_carrier, call.inputs)) and is_cut(output):
            note_cut(session, frame, made, call.args)
        return leave(rule, call, output, session.stack.constants)
    finally:
        frame.call = outer


def _rule_for(made: Decision, call: OpCall) -> Rule:
    """Return the rule of one call: the one decided, adapted to the histories of this call's carriers."""
    info, op = made.info, made.info.op
    assert made.rule is not None
    known = call.known
    signals = known.count(SIGNAL) == len(known)
    call.by_degree = not signals and made.key is None and info.own is None
    if op is not None and op.held and made.key is None and info.own is None and not isinstance(made.rule, Chained):
        args, kwargs = hold(op, call.args, call.kwargs)
        carriers = find_carriers(args, kwargs)
        if not carriers:
            return STOP
        call.args, call.kwargs, call.carriers = args, kwargs, carriers
    elif made.gated is not None and not signals and any(history.gate is Gate.OPENS for history in known):
        return made.gated if any(gates_among(call, Gate.OPENS)) else made.rule
    return made.rule


def _obstacle(session: Session, frame: Frame, carriers: list[Tensor]) -> str:
    """Return why the autograd functions of rules cannot be used here; empty if they can."""
    for x in carriers:
        if x.layout is not torch.strided:
            return SPARSE
    checkpoint = checkpoint_hook()
    if checkpoint is not None and checkpoint is not frame.checkpoint and not rejoin(session, frame):
        return BARE  # it is recomputed in no module, and so without rules
    if in_transform():
        return "in a transform of torch.func"
    return ""


def _run_replaced(made: Decision, call: OpCall) -> Any:
    assert made.key is not None
    assert made.key.replacement is not None
    info, args, kwargs = made.info, call.args, call.kwargs
    replacement = in_formulation(call.formulation, made.key.replacement)
    if info.op is not None and is_reversed(info.op):
        args = (args[1], args[0], *args[2:])
    if not mutates(info.function, args, kwargs):
        return replacement(*args, **kwargs)
    # The replacement gives a new tensor; the target must not change before.
    target = next(written(args, kwargs))
    args, kwargs = map_tensors(lambda tensor: tensor.clone() if tensor is target else tensor, (args, kwargs))
    return write_into(target, replacement(*args, **kwargs))


def _run_steps(session: Session, frame: Frame, made: Decision, call: OpCall) -> Any:
    """Run a kernel that is several operations, and give its values the graph of those, each under its rule."""
    info, args, kwargs = made.info, call.args, call.kwargs
    body = info.steps
    assert body is not None
    target = next(written(args, kwargs)) if changes(info, args, kwargs) else None
    if target is not None:
        body = on_copy(target, body)
    try:
        steps = list(tensors_in(run_body(session, frame, body, *args, **kwargs)))
    except NotImplementedError as reason:
        return run_uncovered(session, frame, made, call, str(reason))
    except TypeError as error:
        raise (misfit(info, frame.path, f"failed: {error}") if info.foreign else error) from error
    if session.stack.seen is not None:
        session.stack.seen.told(None, Status.EXACT)
    if frame.context.scope is None:
        count = session.tally.count(OpKey(frame.path, info.name, "(taken apart)", None, Status.DEFAULT))
        count.calls += 1
        if frame.part_of is not None:
            frame.part_of.counts.append(count)
    backward = iter(steps)
    # A tensor changed in place would keep the operation's own nodes behind those of the steps.
    changed = target is not None and not (target.is_leaf and target.requires_grad)  # else autograd refuses it
    if changed:
        before_change(session, args, kwargs)  # the steps have saved what they were given
    with torch.set_grad_enabled(not changed):
        values = (info.function if info.foreign else info.run)(*call.args, **call.kwargs)
    check_steps(session, info, frame.path, values, steps)
    rounded = info.foreign and session.formulation == RELEVANCE
    output = map_tensors(lambda value: graft(value, next(backward), rounded=rounded), values)
    for tensor, step in zip(tensors_in(output), steps, strict=True):
        mark((tensor,), history_of(step))
    if target is None or not output.requires_grad:
        return output
    rebind(target, output)
    return target


def run_body(session: Session, frame: Frame, body: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run the operations that an operation is made of under the mode, as a part of the module that called it."""
    session.stack.frames.append(frame)
    try:
        with session.mode:
            return body(*args, **kwargs)
    finally:
        session.stack.frames.pop()
