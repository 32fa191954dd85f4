"""The hooks on one module: they bring the function mode in and out, and apply the module's rule if it has one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

from ..autograd.saved_values import checkpoint_hook
from ..autograd.trees import tensors_in
from ..coverage.rows import Status
from ..errors import RuleError, place
from ..keys import Binding
from ..ops import Family
from ..rules import Call, Rule, Stop, find_carriers
from ..rules.linear_layers.layer import LAYER_TYPES
from ..torch_internals import refuse_compiled
from .activation_modules import RULE as UNIT
from .activation_modules import Unit, may_be_unit
from .call_stack import Frame, module_call
from .checkpointing import rejoin
from .execution import enter, leave

if TYPE_CHECKING:
    from .registration import Registration


_NO_BACKWARD = -1
_CONTAINERS = (torch.Tensor, tuple, list, dict, str, int, float, complex)


def _no_hook(module: nn.Module, *_: Any) -> None:
    """What stands in a copy of a registered model where the original has a hook: it takes itself off when it is met."""
    sweep(module)


def sweep(module: nn.Module) -> None:
    """Take off one module what stands in a copy where the original has hooks."""
    marks = (
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    )
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for number in [number for number, hook in hooks.items() if hook is _no_hook]:
            for kept in (hooks, *marks):
                kept.pop(number, None)


def _restored_flags(parameters: list[nn.Parameter], flags: list[bool]) -> Callable[..., None]:
    """In a copy of a registered model: the copied parameters get the flags back that the original had before."""
    for parameter, flag in zip(parameters, flags, strict=True):
        parameter.requires_grad_(flag)
    return _no_hook


class Site:
    """One module of a registered model: its dotted names, its binding if it has one, and its two hooks."""

    __slots__ = ("__weakref__", "around", "binding", "flags", "may_be_unit", "module", "names", "registration")

    def __init__(self, registration: Registration, module: nn.Module, names: tuple[str, ...], binding: Binding | None):
        self.registration, self.module, self.names, self.binding = registration, module, names, binding
        self.flags = [(p, p.requires_grad) for p in module.parameters(recurse=False)]
        mode = registration.mode
        by_identity = mode.defaults and mode.table.get(Family.ACTIVATION) == UNIT
        self.may_be_unit = binding is None and by_identity and may_be_unit(module)
        self.around: tuple[str | None, Rule | None] = (None, None)
        """The bound module that it ran inside of when it was last called, and that one's rule (see :class:`Frame`)."""

    def install(self, stack: ExitStack) -> None:
        """Put both hooks on the module, and what takes them off again on the stack."""
        after = self.module.register_forward_hook(_After(self), prepend=True, always_call=True)
        stack.callback(after.remove)
        before = self.module.register_forward_pre_hook(_Before(self), with_kwargs=True)
        stack.callback(before.remove)

    @property
    def label(self) -> str:
        """For errors: ``"'encoder.fc1' (Linear)"``."""
        return f"{place(self.names[0])} ({type(self.module).__name__})"

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The module begins: bring in the function mode if nobody has, and apply the rule to what goes in."""
        reg = self.registration
        if torch.is_grad_enabled():
            refuse_compiled(place(self.names[0]))
        outer = reg.running.innermost()
        frame = Frame(self, self.names[0], module_call(), checkpoint_hook(), owner=outer is None)
        if outer is not None:
            if frame.checkpoint not in (None, outer.checkpoint) or not torch.is_grad_enabled():
                rejoin(outer)  # a checkpoint has begun in its code
            self.around = outer.inside, outer.scope
        elif torch._C._current_graph_task_id() == _NO_BACKWARD:
            self.around = None, None
            frame.alone = self.module is not reg.model
        # else it is recomputed for its backward, on its own, but the same rule is in force as in the forward pass
        frame.inside, frame.scope = self.around
        reg.running.frames.append(frame)
        if frame.owner:
            reg.begin(args, kwargs)
        if frame.alone:
            reg.tally.check_between(reg.running)
        frame.gaps = reg.running.unseen.begin()
        if self.may_be_unit and torch.is_grad_enabled() and frame.shadowed_by is None:
            carriers = find_carriers(args, kwargs)
            frame.unit = Unit(carriers[0]) if len(carriers) == 1 else None
            if frame.unit is not None:
                self._show(frame, UNIT, Status.DEFAULT, args, kwargs, carriers)
        if self.binding is None:
            return None
        exchanged = self._apply_rule(frame, args, kwargs)
        reg.running.unseen.end()
        return exchanged

    def _apply_rule(
        self, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        reg, binding = self.registration, self.binding
        assert binding is not None
        assert binding.assignment.rule is not None
        rule = binding.assignment.rule
        recorded = torch.is_grad_enabled()
        if frame.inside is not None:
            if recorded:
                reg.tally.shadowed[self] = frame.inside
            return None
        if recorded and isinstance(self.module, LAYER_TYPES) and reg.mode.takes_first_layer(self, binding.assignment):
            reg.tally.shadowed[self] = "first_layer"  # the function mode sees the layer's operation and does the rest
            return None
        carriers = find_carriers(args, kwargs) if recorded else []
        reg.tally.check_unseen(carriers, frame, reg.running)
        frame.inside, frame.in_force = frame.path, True
        frame.scope = rule if rule.families else None
        reg.tally.modules[self] += recorded
        if rule.families and carriers and rule.takes_whole(self.module):
            frame.whole = Call(reg.formulation, self.label, args, kwargs, module=self.module, parts=reg.mode.parts)
            frame.whole.take(carriers)
            self._show(frame, rule, Status.RULED, args, kwargs, carriers)
        if rule.families or not carriers:
            return None
        reg.running.carriers_met = True
        reg.running.stopped |= isinstance(rule, Stop)
        frame.call = Call(reg.formulation, self.label, args, kwargs, module=self.module, carriers=carriers)
        frame.call.parts = reg.mode.parts
        self._show(frame, rule, Status.RULED, args, kwargs, carriers)
        return enter(rule, frame.call)

    def _show(
        self,
        frame: Frame,
        rule: Rule,
        status: Status,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        carriers: list[torch.Tensor],
    ) -> None:
        """Let the observer, if there is one, see a module begin that is taken as one unit."""
        observer = self.registration.mode.observer
        if observer is not None:
            kind = type(self.module).__name__
            frame.seen = observer.begin(frame.path, kind, None, self.module, args, kwargs, carriers)
            frame.seen.told(rule, status)

    def after(self, output: Any) -> Any:
        """The module has ended, by an error maybe: apply the rule to what comes out, take the function mode out."""
        reg = self.registration
        frames, python = reg.running.frames, module_call()
        while frames and frames[-1].python is not python and not frames[-1].is_running():
            frames.pop()  # an interrupt ended these, and the module caught it
        if not frames or frames[-1].python is not python:
            return None  # it failed in a hook before ours, so ours never began
        frame, unseen = frames.pop(), reg.running.unseen
        unseen.begin()
        if frame.in_force and frame.scope is None:
            unseen.forget(frame.gaps)
        try:
            if output is None:
                return None
            with torch._C.DisableTorchFunction():  # what the rules call themselves is not the model's
                if frame.in_force:
                    output = self._leave(frame, output)
                elif frame.unit is not None:
                    output = self._leave_unit(frame, frame.unit, output)
                if reg.mode.observer is not None:
                    if frame.seen is not None:
                        reg.mode.observer.end(frame.seen, output)
                    reg.mode.observer.module(frame.path, type(self.module).__name__, output)
            carriers = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
            reg.tally.check_unseen(carriers, frame, reg.running)
            if frame.owner and (carriers or reg.running.carriers_met or reg.running.root_inputs):
                reg.tally.carried |= reg.running.recorded and bool(carriers or reg.running.stopped)
                if frame.alone:
                    reg.tally.alone[self.names[0]] = None
            if frame.owner:
                output = reg.finish(self, output)
                if reg.mode.observer is not None:
                    reg.mode.observer.finish(output)
            return output
        finally:
            unseen.end()
            if frame.owner:
                reg.end()
            elif frame.served and frames[-1].scope is frame.scope:
                frames[-1].served = True  # a container with a rule is served by what runs in its children

    def _leave_unit(self, frame: Frame, unit: Unit, output: Any) -> Any:
        """Take a module that turned out to be one elementwise function as a unit; else its steps stand."""
        tally = self.registration.tally
        if not unit.holds(output):
            tally.ops.update(unit.rows)
            frame.seen = None
            return output
        tally.ops.update(unit.shadowed_rows(self.names[0]))
        tally.units[self] += 1
        return unit.leave(self.registration.formulation, self.label, self.module, output)

    def _leave(self, frame: Frame, output: Any) -> Any:
        """Apply the module's rule to what comes out, or see to it that the rule was applied inside."""
        reg, carries = self.registration, any(tensor.requires_grad for tensor in tensors_in(output))
        assert self.binding is not None
        assert self.binding.assignment.rule is not None
        rule = self.binding.assignment.rule
        if frame.call is not None:
            if not isinstance(output, _CONTAINERS) and next(tensors_in(output), None) is None:
                raise RuleError(
                    f"{rule} finds no tensor in the output of {self.label}, which is of type {type(output).__name__}; "
                    f"return tensors in tuples, lists, dicts or dataclasses, or put the rule on the modules inside"
                )
            return leave(rule, frame.call, output)
        if frame.whole is not None and not (carries and frame.others):
            frame.seen = None  # what is inside was seen
        if frame.whole is not None and carries and (frame.others or not frame.served):
            return leave(rule, frame.whole, output) if frame.others else output
        if frame.scope is None and carries:
            reg.tally.uncovered(frame.path, type(self.module).__name__, "relevance enters it not by its arguments")
        if frame.scope is not None and carries and not frame.served:
            families = ", ".join(sorted(family.value for family in rule.families))
            raise RuleError(
                f"{rule} acts on operations of the families {families}, but none ran in {self.label}; "
                f"give it another rule, such as Epsilon()"
            )
        return output


class _Before:
    """The hook before a module. Copies and pickles of the model get an empty hook, and their flags back."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.site.before(args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        parameters, flags = [p for p, _ in self.site.flags], [flag for _, flag in self.site.flags]
        return _restored_flags, (parameters, flags)


class _After:
    """The hook after a module."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.site.after(output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored_flags, ([], [])


def is_our_hook(hook: Any) -> TypeGuard[_Before]:
    """Whether a forward pre-hook belongs to a registration (those in copies do not)."""
    return isinstance(hook, _Before)
