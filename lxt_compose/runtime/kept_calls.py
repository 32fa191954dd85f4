"""Calls that come to what they came to before.

What most calls come to is told by their place, by what they are given, and by what is known of their carriers. So that
is kept once one has run. The next one runs and is marked; if a rule acts, it is applied, or what it does to all such
calls (`Rule.again`). Where anything else might matter, nothing is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..autograd.marks import MARK, SIGNAL, History, history_of, mark
from ..autograd.nodes import edge_of
from ..autograd.trees import tensors_in
from ..rules import OpCall, Stop, is_carrier
from ..rules.again import detached
from .call_stack import CallStack, Frame
from .chain_step import How, begun
from .chain_steps import step_of
from .chains import MARK as CHAIN
from .chains import Chain
from .chains import mark as mark_chain
from .decisions import Action, written
from .execution import enter, leave
from .forms import sketch
from .keeping import Calls, Kept, has_learned, records_alone
from .operations import SPARSE, is_cut, note_cut
from .policy import FunctionInfo
from .session import Session
from .step_checks import EIGHT_BITS, is_narrow, note_rounded
from .written_softmax import WrittenSoftmax

MISSED = object()
"""What :meth:`KeptCalls.run` returns for a call of which nothing is kept, and that it has not run."""


class KeptCalls:
    """Runs calls by what such calls came to before.

    Args:
        session: the state of the registration.
        how: what matters where a call is a step of a chain.
        softmax: finds softmaxes that the model writes itself.
    """

    def __init__(self, session: Session, how: How, softmax: WrittenSoftmax) -> None:
        self._session, self._how, self._softmax = session, how, softmax

    def run(self, stack: CallStack, frame: Frame, calls: Calls, args: Any, kwargs: Any) -> Any:
        """Run a call if what it comes to is kept, and mark its output; else return :data:`MISSED`.

        Args:
            stack: what runs in this thread.
            frame: the module that calls.
            calls: what is kept of the function.
            args: what it is called with.
            kwargs: the same by keyword.
        """
        info = calls.info
        carriers, key = sketch(args, kwargs, calls.by_values, info.by_values)
        alike = calls.found.get(key)
        if alike is None or self._session.observer is not None:
            return MISSED
        known = []
        for x in carriers:
            node: Any = x.grad_fn
            known.append(_of_leaf(x, stack) if node is None else node.metadata.get(MARK))
        for kept in alike:
            if kept.known != known or (
                kept.learned is not None and kept.learned != has_learned(self._session, args, kwargs)
            ):
                continue
            if kept.plain:
                if info.chains and (stack.conditions.noted or (len(carriers) > 1 and not _are_apart(carriers))):
                    continue
                _count(stack, frame, kept)
                output = info.run(*args, **kwargs) if kwargs else info.run(*args)
                node = output.grad_fn if isinstance(output, Tensor) else None
                if node is None:
                    self._end_without_node(info, frame, kept, args, kwargs, output)
                elif node is not carriers[0].grad_fn:  # else it is the carrier itself
                    node.metadata[MARK] = kept.history
                    if info.copies:
                        if is_narrow(output):
                            note_cut(self._session, frame, kept.made, args, EIGHT_BITS)
                        self._mark_copy(info, carriers, args, kwargs, output)
                stack.last = output
                return output
            found = _beginnings(carriers, kept, info, frame, stack)
            if found is not None:
                return self._run(stack, frame, info, kept, carriers, found[0], args, kwargs)
        return MISSED

    def _run(
        self,
        stack: CallStack,
        frame: Frame,
        info: FunctionInfo,
        kept: Kept,
        carriers: list[Tensor],
        before: Chain | None,
        args: Any,
        kwargs: Any,
    ) -> Any:
        x, after, what = carriers[0], None, None
        source = x.grad_fn
        if kept.after is not None and info.op is not None:
            after = begun(info.op, kept.after, before, x, None, self._how)
        if kept.notes:
            what = self._softmax.read(info, stack.notes, args, kwargs, keyed=True)
        _count(stack, frame, kept)
        frame.others |= kept.made.action is not Action.RUN
        if kept.rule is None:
            output = info.run(*args, **kwargs)
        else:
            stack.stopped |= isinstance(kept.rule, Stop)
            output = self._ruled(info, frame, kept, carriers, args, kwargs)
        node: Any = output.grad_fn if isinstance(output, Tensor) else None
        if node is None:
            self._end_without_node(info, frame, kept, args, kwargs, output)
        elif node is not source:
            node.metadata[MARK] = kept.history
            if after is not None:
                if after.keeps:
                    stack.chains.append(weakref.ref(after))
                mark_chain(output, after)
        if what is not None:
            stack.notes.enter(output, what)
        stack.last = output
        return output

    def _ruled(
        self, info: FunctionInfo, frame: Frame, kept: Kept, carriers: list[Tensor], args: Any, kwargs: Any
    ) -> Any:
        """Run a call under its rule."""
        again, given = kept.again, args
        if again is None or (again.holds is not None and not again.holds(carriers, args)):
            return self._by_rule(info, frame, kept, carriers, args, kwargs)
        if again.enter is not None:
            given = list(args)
            for number, place in enumerate(kept.places):
                given[place] = again.enter(args[place], number)
        output = info.run(*given, **kwargs)
        if output.layout is not torch.strided:
            return self._without_rule(info, frame, kept, args, kwargs)
        if not output.requires_grad and again.enter is not detached and is_cut(output):
            note_cut(self._session, frame, kept.made, args)
        return again.leave(carriers, output, args, kwargs)

    def _by_rule(
        self, info: FunctionInfo, frame: Frame, kept: Kept, carriers: list[Tensor], args: Any, kwargs: Any
    ) -> Any:
        """Run a call, and ask the rule."""
        session, rule = self._session, kept.rule
        assert rule is not None
        call = OpCall(session.formulation, "", args, kwargs, info.op, None, info.function, carriers)
        call.path, call.name, call.histories = frame.path, info.name, list(kept.known)
        call.rule, call.parts, call.by_degree = rule, session.parts, kept.by_degree
        call.idle = rule.idle(call)
        given = (args, kwargs) if call.idle else enter(rule, call, session.stack.constants)
        output = info.run(*given[0], **given[1])
        if output.layout is not torch.strided and not call.idle:
            return self._without_rule(info, frame, kept, args, kwargs)
        if (call.idle or any(map(is_carrier, call.inputs))) and is_cut(output):
            note_cut(session, frame, kept.made, args)
        return output if call.idle else leave(rule, call, output, session.stack.constants)

    def _without_rule(self, info: FunctionInfo, frame: Frame, kept: Kept, args: Any, kwargs: Any) -> Any:
        """Run a call that gives a sparse tensor, which no rule knows."""
        note_cut(self._session, frame, kept.made, args, SPARSE)
        return info.run(*args, **kwargs)

    def _end_without_node(
        self, info: FunctionInfo, frame: Frame, kept: Kept, args: Any, kwargs: Any, output: Any
    ) -> None:
        """Mark several outputs, and record one without a gradient."""
        session = self._session
        if kept.rule is None and is_cut(output):
            note_cut(session, frame, kept.made, args)
        for tensor in written(args, kwargs) if output is None and info.can_mutate else tensors_in(output):
            if not tensor.requires_grad:
                note_rounded(session, frame, info, args, kwargs, tensor)
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                mark((tensor,), kept.history)
            elif frame.part_of is not None and info.effect is not None:
                session.stack.constants.give(tensor, kept.history)

    def _mark_copy(self, info: FunctionInfo, carriers: list[Tensor], args: Any, kwargs: Any, output: Tensor) -> None:
        """Mark a copy as a step of the chain of its carrier."""
        step = step_of(info, args, kwargs, carriers, None, self._how)
        if step is not None:
            mark((output,), step.history(history_of(output), 1))
            if step.chain.keeps:
                self._session.stack.chains.append(weakref.ref(step.chain))
            mark_chain(output, step.chain)


def _count(stack: CallStack, frame: Frame, kept: Kept) -> None:
    """Count a call that is about to run."""
    stack.carriers_met = True
    for count in kept.counts:
        count.calls += 1
    if frame.part_of is not None and kept.made.count is not None:
        frame.part_of.counts.append(kept.counts[-1])


def _of_leaf(x: Tensor, stack: CallStack) -> History | None:
    """Return what is known of a leaf: nothing, but of those that the model is given."""
    return SIGNAL if any(x is given for given in stack.root_inputs) else None


def _are_apart(carriers: Sequence[Tensor]) -> bool:
    """Return whether carriers are no functions of others, and have nodes of their own."""
    nodes: set[Any] = {x.grad_fn for x in carriers}
    return len(nodes) == len(carriers) and all(node is not None and CHAIN not in node.metadata for node in nodes)


def _beginnings(
    carriers: Sequence[Tensor], kept: Kept, info: FunctionInfo, frame: Frame, stack: CallStack
) -> tuple[Chain | None] | None:
    """Return the chain of the only carrier; None where more matters, or where carriers may not be told apart."""
    if not records_alone(frame) or (info.chains and stack.conditions.noted):
        return None
    chain, sources = None, set()
    for x in carriers:
        if x.dtype is not kept.dtype or x.layout is not torch.strided:
            return None
        node: Any = x.grad_fn
        chain = node.metadata.get(CHAIN) if info.chains and node is not None and x.output_nr == 0 else None
        if chain is not None and chain.checkpoint is not None:
            return None
        sources.add(edge_of(x) if chain is None else chain.source)
    if kept.follows and (None if chain is None else chain.curve) is not kept.before:
        return None
    return (chain,) if len(sources) == len(carriers) else None
