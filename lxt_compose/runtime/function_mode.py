"""The function mode: sees every torch function that the model calls, and runs it as decided."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..autograd.functions import rebind
from ..autograd.marks import MARK, history_of, mark, mark_seen
from ..autograd.trees import map_tensors, tensors_in
from ..lxt.drop_in import under
from ..ops import Family, op_of
from ..rules import RELEVANCE, Epsilon, OpCall, Rule
from ..rules.defaults import drops
from ..torch_internals import Depth, innermost, refuse_compiled
from .call_stack import Frame
from .chain_step import How, Step
from .chain_steps import note_comparison, step_of
from .chains import mark as mark_chain
from .constant_calls import run_constant
from .decisions import Action, CallSite, Decision, decide, decide_on_step, written
from .elementwise_histories import joined
from .forms import read
from .histories import taking_part
from .in_place import before_change, changes
from .keeping import keep
from .kept_calls import MISSED, KeptCalls
from .observer import watch
from .operations import is_cut, note_cut, record, run, run_body, run_unrecorded
from .policy import FunctionInfo
from .recorded import Recorded, known_of
from .session import Session
from .step_checks import EIGHT_BITS, is_narrow, note_rounded
from .strangers import without_strangers
from .unfolded import unfolded
from .written_softmax import WrittenSoftmax


class FunctionMode(TorchFunctionMode):
    """Applies rules to functions; one object serves all threads, since what runs is kept per thread."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._inert, self._infos = session.policy.inert, session.policy.infos
        self._threads, self._info = session.threads, session.policy.info
        self._softmax = WrittenSoftmax(session.policy)
        stabilized = session.policy.table.get(Family.LINEAR) != Epsilon(0.0)
        self._how = How(session.formulation == RELEVANCE, stabilized, self._threads)
        self._kept = KeptCalls(session, self._how, self._softmax)
        self._depth = Depth()
        self._is_learned = session.policy.is_learned

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function; the mode is off meanwhile, so what it calls itself is not seen."""
        if self.session.following is not None:
            return self.session.following.run(self._run, func, args, kwargs or {})
        if func in self._inert:  # nothing at all is to be done about it
            return func(*args, **kwargs) if kwargs else func(*args)
        return self._run(func, args, kwargs or {})

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stack = self._threads.stack
        frame: Frame | None = innermost(stack.frames, self._depth)
        if frame is None or func in self._inert:  # an interrupt skipped the hooks, and left the mode behind
            return func(*args, **kwargs)
        recorded = torch.is_grad_enabled()
        calls = frame.context.kept.get(func)
        if calls is not None and recorded and not stack.notes.active:
            output = self._kept.run(stack, frame, calls, args, kwargs)
            if output is not MISSED:
                if frame.part_of is not None:
                    frame.part_of.see(calls.info.op, args, kwargs, output, drop_in=False)
                return output
        info = self._infos.get(func)
        if info is None:
            info, args = self._inform(frame, func, args)
            if info is None:
                with self:
                    return args[2](*args[3:], **kwargs)
        if info.ignored:
            return func(*args, **kwargs)
        if not recorded:
            output = run_unrecorded(self.session, frame, info, args, kwargs)
        elif frame.context.shadowed_by is None and (
            stack.notes.active or (info.begins_softmax and self._softmax.may_begin(info, args, kwargs))
        ):
            output = self._run_part_of_softmax(info, frame, args, kwargs)
        elif kwargs or info.can_mutate:
            output = self._run_recorded(info, frame, args, kwargs)
        else:
            output = self._run_seen(info, frame, args, kwargs)
        if info.fills:
            stack.conditions.note_number(output)
        if frame.part_of is not None:
            frame.part_of.see(info.op, args, kwargs, output, drop_in=info.own is not None)
        return output

    def _inform(
        self, frame: Frame, func: Callable[..., Any], args: tuple[Any, ...]
    ) -> tuple[FunctionInfo | None, tuple[Any, ...]]:
        """Return what is known of a function, and its arguments; None for a drop-in in a module with a rule.

        A drop-in has a rule of its own, which the rule of a module around replaces.
        """
        if func is not under:
            return self._info(func), args
        if frame.context.inside is not None:
            return None, args
        return self._drop_in(frame, *args[:3]), args[3:]

    def _drop_in(self, frame: Frame, rule: Rule, name: str, function: Callable[..., Any]) -> FunctionInfo:
        """Return what is known of a drop-in: its rule, its name, and the function that it computes."""
        info = FunctionInfo(function, name, op_of(function), None, function, own=rule)
        if info.op is None:
            inside = frame.within(frame.site.context_in(frame.path, None))
            info.run = partial(run_body, self.session, inside, function)
        else:
            info.is_layer = info.op.traits.has_weight
        return info

    def _run_part_of_softmax(
        self, info: FunctionInfo, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a function that may be a step of a softmax that the model writes itself; its last one is that softmax."""
        target = None
        if changes(info, args, kwargs):
            target = next(written(args, kwargs))
            before_change(self.session, args, kwargs)
        notes, keyed = self._threads.stack.notes, info.key is not None and not frame.context.scoped
        sums = info.op is not None and info.op.traits.signs is not None  # keys for sums do not matter to a softmax
        run = partial(self._run_within, frame)
        found = self._softmax.find(info, notes, args, kwargs, run) if sums or not keyed else None
        if found is None:
            what = self._softmax.read(info, notes, args, kwargs, keyed=keyed)
            output = self._run_recorded(info, frame, args, kwargs)
            notes.enter(output, what)
            return output
        value = info.run(*map_tensors(torch.Tensor.detach, args))
        output = self._run_recorded(found.info, frame, (*found.args, value), {})
        notes.enter(output, found.note)
        if target is None:
            return output
        if not output.requires_grad and not target._is_view():
            return target.detach_()  # a constant from now on
        rebind(target, output)
        return target if output.requires_grad else output

    def _run_within(self, frame: Frame, info: FunctionInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function as an operation of the module that runs."""
        return self._run_recorded(info, frame, args, kwargs)

    def _run_recorded(self, info: FunctionInfo, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function while autograd records it."""
        if not ((kwargs or info.can_mutate) and changes(info, args, kwargs)):
            return self._run_seen(info, frame, args, kwargs)
        before_change(self.session, args, kwargs)
        views = [(x, x._base) for x in written(args, kwargs) if x._base is not None]
        before = [[history_of(base)] if base.requires_grad else [] for _, base in views]
        output = self._run_seen(info, frame, args, kwargs)
        for (view, base), known in zip(views, before, strict=True):
            mark((base,), joined([history_of(view), *known]))
        return output

    def _run_seen(self, info: FunctionInfo, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function, and mark its output."""
        if info.can_drop and drops(info.op, args, kwargs):
            self.session.tally.warn_dropout(frame.context.path)
        carriers, form = read(args, kwargs)
        if not carriers:
            return run_constant(self.session, info, frame, args, kwargs)
        session, stack, context = self.session, self._threads.stack, frame.context
        stack.carriers_met = True
        if (known := known_of(carriers, frame, session)) is None:
            return self._run_seen(info, frame, *without_strangers(session, carriers, frame, args, kwargs))
        now = Recorded(info, frame, args, kwargs, carriers, form, known, known)
        said: Any = None
        if info.varies:  # :func:`decide` reads nothing else of the call
            told = info.told_by_form and form is not None
            said = form if told else session.policy.said_by_arguments(info, args, kwargs, context)
        site: CallSite = info.function, len(carriers), said
        made = context.decisions.get(site)
        passive = made is not None and made.action is Action.RUN and session.observer is None
        if info.chains and not (passive and info.copies and not stack.conditions):
            now.step = self._step(now)
            if now.step is not None and now.step.rule is not None:
                made = None
        if made is not None and passive:
            return self._run_passive(now, made)
        return self._noted(now, self._run_decided(now, made, site))

    def _run_passive(self, now: Recorded, made: Decision) -> Any:
        """Run a function whose own gradient is what is wanted."""
        info, source = now.info, now.carriers[-1].grad_fn
        if made.shadowed is not None:
            made.shadowed.calls += 1
        record(self.session, now.frame, made)
        output = info.run(*now.args, **now.kwargs)
        node: Any = output.grad_fn if isinstance(output, Tensor) else None
        if node is None:
            if is_cut(output):
                note_cut(self.session, now.frame, made, now.args)
            output = self._noted(now, output)
        elif node is not source:  # else the output is the carrier itself
            if info.copies and now.step is None:  # the rule of a copy does not depend on what is copied
                now.step = self._step(now)
            node.metadata[MARK] = now.history(self._is_learned)
            if info.copies and is_narrow(output):
                note_cut(self.session, now.frame, made, now.args, EIGHT_BITS)
            if now.step is not None:
                mark_chain(output, now.step.chain)
        keep(self.session, self._how, self._softmax, now, made, None, output)
        return output

    def _step(self, now: Recorded) -> Step | None:
        """Return what a call does to a function of one tensor, if it is a step of one that no key matches."""
        info, context, scope = now.info, now.frame.context, now.frame.context.scope
        key = None if info.key is None or context.scoped else info.key
        if context.shadowed_by is not None or (key is not None and not (key.rule and key.rule.shares_streams)):
            return None
        served = scope is not None and info.op is not None and scope.serves(info.op, len(now.carriers))
        if served and scope is not None and not scope.shares_streams:
            return None
        how = self._how
        if (now.kwargs or info.can_mutate) and changes(info, now.args, now.kwargs):
            how = how._replace(target=next(written(now.args, now.kwargs), None))
        step = step_of(info, now.args, now.kwargs, now.carriers, now.form, how)
        if step is not None and (served or key is not None):
            step = step.beside_streams(served=served)
        if step is not None and step.chain.keeps:
            self._threads.stack.chains.append(weakref.ref(step.chain))
        return step

    def _noted(self, done: Recorded, output: Any) -> Any:
        """Mark the outputs of a function with what is known of them, and return them."""
        info, step = done.info, done.step
        made: Sequence[Tensor] = (output,)
        if not isinstance(output, Tensor):
            made = tuple(written(done.args, done.kwargs) if output is None and info.can_mutate else tensors_in(output))
        for tensor in (x for x in made if not x.requires_grad):
            note_rounded(self.session, done.frame, info, done.args, done.kwargs, tensor)
        if step is not None:
            mark_chain(output, step.chain)
        if info.compares:
            note_comparison(info, done.args, done.kwargs, done.carriers, output, self._how)
        if info.effect is None and step is None:
            mark_seen(made)
            return output
        history = done.history(self._is_learned)
        for tensor in made:
            if tensor.requires_grad:
                mark((tensor,), history)
            elif done.frame.part_of is not None:  # a rule has stopped relevance, but the unit has a rule of its own
                self._threads.stack.constants.give(tensor, history)
        return output

    def _run_decided(self, now: Recorded, made: Decision | None, site: CallSite) -> Any:
        """Run a function as decided."""
        session, stack, info, frame, step = self.session, self._threads.stack, now.info, now.frame, now.step
        context = frame.context
        call = OpCall(session.formulation, "", now.args, now.kwargs, info.op, function=info.function)
        call.carriers, call.path, call.name, call.histories = now.carriers, context.path, info.name, now.known
        if info.own is not None and isinstance(info.function, nn.Module):
            call.module = info.function
        if step is not None and step.rule is not None:
            step.prepare(call)
            made = decide_on_step(step.rule, step.shown or step.rule, info, context, session.policy)
            made.served = step.served
        elif made is None:
            refuse_compiled(info.name)
            first = info.is_layer and self._is_first(frame, info)
            made = decide(call, info, context, session.policy, first=first)
            if made.keep:
                context.keep(site, made)
        made = unfolded(made, call)
        stack.first_layer_met |= info.is_layer
        if session.observer is None or made.action is Action.SHADOWED:
            output = run(session, frame, made, call)
        else:
            output = watch(session.observer, stack, call, lambda: run(session, frame, made, call))
        now.known = taking_part(now.known, call.shares)
        keep(session, self._how, self._softmax, now, made, call, output)
        return output

    def _is_first(self, frame: Frame, info: FunctionInfo) -> bool:
        """Return whether the key `first_layer` gives the rule of a layer that is about to run."""
        if self.session.policy.first_layer is None or frame.context.shadowed_by is not None:
            return False
        bound = frame.site.binding
        own = info.key if info.key is not None and not frame.context.scoped else None
        return self.session.takes_first_layer(frame.site, own or (bound.assignment if bound else None))
