"""Calls through which no relevance flows."""

from __future__ import annotations

from typing import Any

from ..autograd.trees import tensors_in
from ..errors import place
from ..rules import OpCall
from ..torch_internals.attention import attention_body
from .call_stack import Frame
from .decisions import decide, written
from .histories import after
from .operations import run_body
from .policy import FunctionInfo
from .session import Session


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
