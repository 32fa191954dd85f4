"""Calls that need no rule: plain ones, and those through which no relevance flows.

A call is plain if its own gradient is its rule, and all its carriers are signals, with no further history.

Most calls of a model are plain: in the gradient formulation layers, sums and moves. What they do to histories and
chains depends on the function and the number of carriers alone, so they are counted and run without an `OpCall`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any

from torch import Tensor

from ..autograd.marks import MARK, SIGNAL, History, history_of, mark
from ..autograd.trees import PLAIN, tensors_in
from ..errors import place
from ..rules import OpCall
from ..torch_internals.attention import attention_body
from .call_stack import CallStack, Frame
from .chain_step import How
from .chain_steps import step_of
from .chains import MARK as CHAIN
from .chains import Conditions
from .chains import mark as mark_chain
from .decisions import Action, Decision, decide, written
from .elementwise_histories import joined
from .forms import read
from .histories import Signals, after, mixed, takes_all
from .operations import is_cut, note_cut, run_body
from .policy import FunctionInfo
from .session import Session

MISSED = object()
"""What :func:`run_plain` returns for a call that is not plain, and that it has not run."""
_RUN = Action.RUN
_NO_TENSORS = PLAIN | {slice, EllipsisType}


def run_plain(
    session: Session, stack: CallStack, how: How, frame: Frame, info: FunctionInfo, args: Any, kwargs: Any
) -> Any:
    """Run a call if it is plain, and mark its output; else return :data:`MISSED`.

    Args:
        session: the state of the registration.
        stack: what runs in this thread.
        how: what else matters where it is a step of a chain.
        frame: the module that calls.
        info: the function.
        args: what it is called with.
        kwargs: the same by keyword.
    """
    signals, form, constant = info.signals, None, None
    if info.forms is None:
        carriers, constant = _given(args, kwargs)
    else:
        carriers, form = read(args, kwargs)
        if form not in info.forms:
            return MISSED
    if signals is None or not carriers or session.observer is not None:
        return MISSED
    made = frame.context.decisions.get((info.function, len(carriers), form if info.varies else None))
    if made is None or made.action is not _RUN:
        return MISSED
    source: Any = carriers[-1].grad_fn
    known = plain_history(session, stack, info, signals, carriers, constant, args)
    if known is None:
        return MISSED
    stack.carriers_met = True
    if made.count is not None:
        made.count.calls += 1
    output = info.run(*args, **kwargs)
    node: Any = output.grad_fn if isinstance(output, Tensor) else None
    if node is None:
        _end_without_node(session, frame, made, args, kwargs, output)
        mark(tensors_in(output), known)
    elif node is not source:  # else it is the carrier itself
        node.metadata[MARK] = known
        if info.copies:
            _mark_copy(stack, how, info, carriers, args, kwargs, output)
    return output


def plain_history(
    session: Session,
    stack: CallStack,
    info: FunctionInfo,
    signals: Signals,
    carriers: list[Tensor],
    constant: Tensor | None,
    args: Any,
) -> History | None:
    """Return what is known of the output of a call that is plain; None if it is not."""
    if len(carriers) > 1:
        return _of_several(info, signals, carriers)
    source: Any = carriers[0].grad_fn
    known: History | None = SIGNAL if source is None else source.metadata.get(MARK)
    if known is not SIGNAL or info.chains or not signals.alone:
        return _of_one(session, info, signals, known, constant, args, stack.conditions)
    return known


def _end_without_node(session: Session, frame: Frame, made: Decision, args: Any, kwargs: Any, output: Any) -> None:
    """Record a call whose output is no tensor with a gradient, or several tensors."""
    if is_cut(output):
        note_cut(session, frame, made, args)
    if session.rounded is not None and isinstance(output, Tensor) and not output.requires_grad:
        session.rounded(made.info.function, args, kwargs, output)


def _mark_copy(
    stack: CallStack, how: How, info: FunctionInfo, carriers: list[Tensor], args: Any, kwargs: Any, output: Tensor
) -> None:
    """Mark a copy as a step of the chain of its carrier."""
    step = step_of(info, args, kwargs, carriers, None, how)
    if step is not None:
        if step.chain.keeps:
            stack.chains.append(weakref.ref(step.chain))
        mark((output,), step.history(history_of(output), 1))
        mark_chain(output, step.chain)


def _given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Tensor], Tensor | None]:
    """Return the carriers among the arguments, and the last constant; no carriers where some may be in containers."""
    carriers: list[Tensor] = []
    constant = None
    for value in args:
        if isinstance(value, Tensor):
            if value.requires_grad:
                carriers.append(value)
            else:
                constant = value
        elif type(value) not in _NO_TENSORS and not _look_into(value, carriers):
            return [], None
    return (carriers, constant) if not kwargs or _is_harmless(kwargs) else ([], None)


def _look_into(value: Any, carriers: list[Tensor]) -> bool:
    """Add the carriers in a tuple or a list; return False if it may hold others in a container."""
    if type(value) not in (tuple, list):
        return False
    for part in value:
        if isinstance(part, Tensor):
            if part.requires_grad:
                carriers.append(part)
        elif type(part) not in _NO_TENSORS:
            return False
    return True


def _is_harmless(kwargs: Mapping[str, Any]) -> bool:
    """Return whether keyword arguments hold no tensors, and have nothing changed in place."""
    return all(type(value) in _NO_TENSORS for value in kwargs.values()) and not kwargs.get("inplace")


def _of_one(
    session: Session,
    info: FunctionInfo,
    signals: Signals,
    known: History | None,
    constant: Tensor | None,
    args: Sequence[Any],
    conditions: Conditions,
) -> History | None:
    """Return the history of the output of a call with one carrier; None if that depends on more than `known`."""
    if info.copies:
        return None if conditions else known
    if known is not SIGNAL:
        if signals.mixes and known is not None and not info.chains:
            return mixed(known, args, session.policy.is_learned)
        return known if signals.moves and not info.chains else None
    if not info.chains:
        return None
    # What a large constant makes of it is no function of its elements.
    large = constant is not None and len(args) == 2 and constant.numel() > 1 and constant.is_contiguous()
    return known if large and signals.scaled and not conditions.noted else None


def _of_several(info: FunctionInfo, signals: Signals, carriers: Sequence[Tensor]) -> History | None:
    """Return the same for a call with several carriers: not if they may be functions of one tensor."""
    if not signals.together:
        return None
    nodes, found = set(), []
    for x in carriers:
        node: Any = x.grad_fn
        if node is None:
            return None
        known = node.metadata
        if known.get(MARK) is not SIGNAL or (info.chains and CHAIN in known):
            if not signals.moves or not takes_all(info.op) or info.chains or MARK not in known:
                return None
            found.append(known[MARK])
        nodes.add(node)
    if found and joined(found + [SIGNAL] * (len(carriers) > len(found))) is not SIGNAL:
        return None
    return SIGNAL if len(nodes) == len(carriers) or not info.chains else None


def run_constant(session: Session, info: FunctionInfo, frame: Frame, args: Any, kwargs: Any) -> Any:
    """Run a function through which no relevance flows."""
    if frame.context.shadowed_by is not None and info.key is not None:
        # The rule of a module around may have cut the carriers off.
        call = OpCall(session.formulation, place(frame.path), args, kwargs, info.op)
        made = decide(call, info, frame.context, session.policy)
        if made.shadowed is not None:
            made.shadowed.calls += 1
    body = attention_body() if info.has_projections else None  # its products are those of trained weights
    output = info.run(*args, **kwargs) if body is None else run_body(session, frame, body, *args, **kwargs)
    if session.stack.constants:
        _follow(session, info, args, kwargs, output)
    if info.op is not None:
        given = list(tensors_in((args, kwargs)))
        result = list(written(args, kwargs) if output is None and info.can_mutate else tensors_in(output))
        for followed in (session.policy.frozen, session.policy.fixed):
            followed.follow(given, result)
        if session.observer is not None:
            session.observer.constant(given, result)
    return output


def _follow(session: Session, info: FunctionInfo, args: Any, kwargs: Any, output: Any) -> None:
    """Write down what is known of the output where the rule around has made constants of its carriers."""
    constants = session.stack.constants
    carriers, known = constants.among(tensors_in((args, kwargs)))
    if carriers:
        history = after(info, args, kwargs, carriers, known, session.policy.is_learned)
        for tensor in tensors_in(output):
            constants.give(tensor, history)
