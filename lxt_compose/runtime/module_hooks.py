"""The hooks on one module: they activate the function mode, and apply the module's rule if it has one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ..autograd.marks import MARK, SIGNAL, Gate, history_of, mark, mark_seen
from ..autograd.trees import tensors_in
from ..coverage.rows import Status
from ..errors import RuleError, place
from ..rules import OpCall, Rule, Stop, find_carriers, is_carrier
from ..rules.expansion import power_of_module
from ..rules.linear_layers.layer import LAYER_TYPES
from ..torch_internals import (
    Depth,
    checkpoint_hook,
    innermost,
    is_compiled_code,
    modes_off,
    module_call,
    pre_hooks_of,
    refuse_compiled,
)
from ..torch_internals.backward_hooks import are_looked_at, has_full_backward_hooks, late_arguments
from .activation_modules import RULE as UNIT
from .activation_modules import Unit
from .call_stack import Frame, Site
from .chains import chain_of, mark_of
from .chains import mark as mark_chain
from .checkpointing import rejoin
from .copies import restored_flags
from .execution import enter, leave
from .operations import NO_BACKWARD, check_unseen, is_cut
from .session import Session

_CONTAINERS = (Tensor, tuple, list, dict, str, int, float, complex)


class BeforeHook:
    """The hook before a module. Copies and pickles of the model get an empty hook, and their flags back."""

    def __init__(self, session: Session, site: Site) -> None:
        self.session, self.site = session, site
        self._threads, self._around = session.threads, Depth()
        self._acts = site.binding is not None or site.may_be_unit
        self._late: type[tuple[Any, ...]] | None = None
        self._flags = [(p, p.requires_grad) for p in site.module.parameters(recurse=False)]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Activate the function mode if this is the outermost module, and apply the rule to the inputs."""
        site, stack = self.site, self._threads.stack
        outer: Frame | None = innermost(stack.frames, self._around)
        recorded, checkpoint = torch.is_grad_enabled(), checkpoint_hook()
        if recorded and is_compiled_code():
            refuse_compiled(place(site.path))
        if outer is None:
            frame = self.session.enter(site, module_call(), checkpoint, args, kwargs)
        else:
            if (checkpoint is not None and checkpoint is not outer.checkpoint) or not recorded:
                rejoin(self.session, outer)  # a checkpoint has begun in its code
            context, around = site.context, outer.context
            if context.inside != around.inside or context.scope is not around.scope:
                context = site.context = site.context_in(around.inside, around.scope)
            frame = Frame(context, module_call(), checkpoint)
            stack.frames.append(frame)
            if outer.part_of is not None:
                frame.part_of = outer.part_of
        if not (self._acts and (site.binding is not None or (recorded and frame.context.shadowed_by is None))):
            return None
        if recorded and has_full_backward_hooks(site.module) and are_looked_at(args):
            return self._begin_late(frame, args, kwargs)
        return self._begin(frame, args, kwargs)

    def _begin(self, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.site.binding is not None:
            return self._apply_rule(frame, args, kwargs)
        self._begin_unit(frame, args, kwargs)
        return None

    def _begin_late(self, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Apply the rule behind torch's full backward hooks on the inputs, so that these see relevance.

        Raises:
            RuleError: a later pre-hook would see what is yet to be exchanged.
        """
        if pre_hooks_of(self.site.module)[-1] is not self and find_carriers((), kwargs):
            self.site.refuse_later_hook()
        frame.late = dict(kwargs)
        if self._late is None:
            self._late = late_arguments(self._begin_now)
        return tuple.__new__(self._late, args), frame.late

    def _begin_now(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        frame = self.session.stack.frames[-1]
        if frame.context.site is not self.site or frame.late is None:
            return args  # another pre-hook made arguments of the same type
        kwargs, frame.late = frame.late, None
        entered = self._begin(frame, args, kwargs)
        if entered is None:
            return args
        kwargs.update(entered[1])
        given: tuple[Any, ...] = entered[0]
        return given

    def _begin_unit(self, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with modes_off():
            carriers = find_carriers(args, kwargs)
            if len(carriers) != 1:
                return
            frame.unit = frame.part_of = Unit(carriers[0], frame.part_of)
            if self.session.observer is not None:
                label, module = self.site.label, self.site.module
                call = OpCall(self.session.formulation, label, args, kwargs, module=module, carriers=carriers)
                self._show(frame, UNIT, Status.DEFAULT, call)

    def _apply_rule(
        self, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        session, site, binding = self.session, self.site, self.site.binding
        assert binding is not None
        assert binding.assignment.rule is not None
        rule, recorded = binding.assignment.rule, torch.is_grad_enabled()
        if frame.context.inside is not None:
            if recorded:
                site.shadowed_in = frame.context.inside
            return None
        if recorded and isinstance(site.module, LAYER_TYPES) and session.takes_first_layer(site, binding.assignment):
            site.shadowed_in = "first_layer"  # the function mode applies the rule to the layer's operation
            return None
        carriers = find_carriers(args, kwargs) if recorded else []
        for x in carriers:
            check_unseen(session, x, frame)
        if recorded and not rule.families and site.has_weight_carriers():
            site.shadowed_in = "its operations, since its weights carry relevance themselves"
            return None
        scope = rule if rule.families else None
        frame.context, frame.in_force = site.context_in(site.path, scope), True
        site.calls += recorded
        if scope is not None and carriers and rule.takes_whole(site.module):
            frame.whole = OpCall(session.formulation, site.label, args, kwargs, module=site.module, parts=session.parts)
            frame.whole.take(carriers)
            self._show(frame, rule, Status.RULED, frame.whole)
        if scope is not None or not carriers:
            return None
        session.stack.carriers_met = True
        session.stack.stopped |= isinstance(rule, Stop)
        frame.call = OpCall(session.formulation, site.label, args, kwargs, module=site.module, carriers=carriers)
        frame.call.parts, frame.call.rule = session.parts, rule
        self._show(frame, rule, Status.RULED, frame.call)
        return enter(rule, frame.call, session.stack.constants)

    def _show(self, frame: Frame, rule: Rule, status: Status, call: OpCall) -> None:
        """Tell the observer, if there is one, that a module begins that is taken as one unit."""
        if self.session.observer is not None:
            call.path, call.name = frame.path, type(self.site.module).__name__
            frame.seen = self.session.observer.begin(call)
            frame.seen.told(rule, status)

    def __reduce__(self) -> tuple[Any, ...]:
        return restored_flags, ([p for p, _ in self._flags], [flag for _, flag in self._flags])


class AfterHook:
    """The hook after a module, also after an error."""

    def __init__(self, session: Session, site: Site) -> None:
        self.session, self.site, self._threads = session, site, session.threads
        self._acts = site.binding is not None or site.may_be_unit

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Apply the rule to the outputs, and deactivate the function mode if this was the outermost module."""
        stack, python = self._threads.stack, module_call()
        frames = stack.frames
        if not frames or frames[-1].python is not python:
            outer: Frame | None = innermost(frames, Depth())
            if outer is None or outer.python is not python:
                return None  # it failed in a hook before ours, so ours never began
        frame = frames.pop()
        if output is stack.last and not self._acts and self.session.observer is None and not frame.owner:
            output = None  # it was marked when it was made
        try:
            return None if output is None else self._leave(frame, output)
        finally:
            if frame.checkpoint is not None:
                stack.notes.clear()  # they would keep alive what the checkpoint is to free
            if frame.owner:
                self.session.end()
            elif frame.served and frames[-1].context.scope is frame.context.scope:
                frames[-1].served = True  # a container with a rule is served by what runs in its children

    def _leave(self, frame: Frame, output: Any) -> Any:
        session = self.session
        with modes_off():  # under a mode each attribute of a tensor is a call of that mode
            if frame.late is not None:
                frame.site.refuse_later_hook()
            if frame.in_force or frame.unit is not None or session.observer is not None:
                output = self._leave_watched(frame, output)
            carriers = [output] if is_carrier(output) else find_carriers((output,), {})
            for x in carriers:
                node: Any = x.grad_fn
                if node is not None and MARK not in node.metadata:
                    check_unseen(session, x, frame)
            return self._finish(frame, carriers, output) if frame.owner else output

    def _leave_watched(self, frame: Frame, output: Any) -> Any:
        observer = self.session.observer
        if frame.in_force:
            output = self._leave_rule(frame, output)
            if frame.context.scope is None:
                mark_seen(tensors_in(output))  # all of it was taken as one
        elif frame.unit is not None:
            output = self._leave_unit(frame, frame.unit, output)
        if observer is not None:
            if frame.seen is not None:
                observer.end(frame.seen, output)
            observer.module(frame.path, type(self.site.module).__name__, output)
        return output

    def _finish(self, frame: Frame, carriers: list[Tensor], output: Any) -> Any:
        session, stack = self.session, self.session.stack
        if carriers or stack.carriers_met or stack.root_inputs:
            session.tally.carried |= stack.recorded and bool(carriers or stack.stopped)
            if frame.alone:
                session.tally.alone[self.site.path] = None
        output = session.finish(self.site.module, output)
        if session.observer is not None:
            session.observer.finish(output)
        return session.differentiable(self.site.module, output)

    def _leave_unit(self, frame: Frame, unit: Unit, output: Any) -> Any:
        """Wrap the output of a module that is one elementwise function; else keep the rules of its steps."""
        before, chain = chain_of(unit.x, checkpoint_hook()), mark_of(output)
        if not unit.holds(output) or (before.at_zero and chain is not None):  # else it would be expanded at 0
            frame.seen = None
            unit.end(output, None)
            return output
        unit.uncount(self.session.tally, self.site.path)
        self.site.units += 1
        known, degree = self.session.stack.constants.get(output) or SIGNAL, history_of(unit.x).degree
        if known.degree != degree:
            degree *= power_of_module(self.site.module)
        output = unit.leave(self.session.formulation, self.site.label, self.site.module, output)
        mark([output], known._replace(gate=max(known.gate, Gate.ACTIVATION), degree=degree))
        if chain is not None:
            chain.skip_to(before, unit.x)
            mark_chain(output, chain)
        unit.end(output, self.site)
        return output

    def _leave_rule(self, frame: Frame, output: Any) -> Any:
        """Apply the module's rule to its output, or make sure that the rule was applied inside."""
        site, carries = self.site, any(tensor.requires_grad for tensor in tensors_in(output))
        assert site.binding is not None
        assert site.binding.assignment.rule is not None
        rule, scope, tally = site.binding.assignment.rule, frame.context.scope, self.session.tally
        if frame.call is not None:
            if not isinstance(output, _CONTAINERS) and next(tensors_in(output), None) is None:
                raise RuleError(
                    f"{rule} finds no tensor in the output of {site.label}, which is of type {type(output).__name__}; "
                    f"return tensors in tuples, lists, dicts or dataclasses, name the type to register_container(), "
                    f"or put the rule on the modules inside"
                )
            if any(x.requires_grad for x in frame.call.inputs) and is_cut(output):
                tally.uncovered(frame.path, type(site.module).__name__, NO_BACKWARD)
            return leave(rule, frame.call, output, self.session.stack.constants)
        if frame.whole is not None and not (carries and frame.others):
            frame.seen = None  # what is inside was seen
        if frame.whole is not None and carries and (frame.others or not frame.served):
            return leave(rule, frame.whole, output, self.session.stack.constants) if frame.others else output
        if scope is None and carries:
            tally.uncovered(frame.path, type(site.module).__name__, "relevance enters it not by its arguments")
        if scope is not None and carries and not frame.served:
            families = ", ".join(sorted(family.value for family in rule.families))
            raise RuleError(
                f"{rule} acts on operations of the families {families}, but none ran in {site.label}; "
                f"give it another rule, such as Epsilon()"
            )
        return output

    def __reduce__(self) -> tuple[Any, ...]:
        return restored_flags, ([], [])


def install(session: Session, site: Site, stack: ExitStack) -> None:
    """Put both hooks on a module, and the callback that removes them on the stack."""
    after = site.module.register_forward_hook(AfterHook(session, site), prepend=True, always_call=True)
    stack.callback(after.remove)
    before = site.module.register_forward_pre_hook(BeforeHook(session, site), with_kwargs=True)
    stack.callback(before.remove)


def is_our_hook(hook: Any) -> TypeGuard[BeforeHook]:
    """Return whether a forward pre-hook belongs to a registration (those in copies do not)."""
    return isinstance(hook, BeforeHook)
