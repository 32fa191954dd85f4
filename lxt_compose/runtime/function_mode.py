"""The function mode: sees every torch function that the model calls, and runs it under its rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..autograd.functions import graft
from ..autograd.saved_values import checkpoint_hook, rescue
from ..autograd.trees import map_tensors, tensors_in
from ..coverage.rows import Status
from ..coverage.tally import OpKey, Tally
from ..errors import RegistrationError, place
from ..keys import Assignment, first_layer
from ..ops import KNOWINGLY_UNCOVERED, Family, is_reversed, mutates
from ..rules import Call, Rule, Stop, default_rules, find_carriers
from ..rules.defaults import Table, drops, rule_of_call
from ..rules.linear_layers.layer import LAYERS
from ..rules.linear_layers.weight_parts import Parts
from ..torch_internals import refuse_compiled
from .call_stack import Frame, Running
from .checkpointing import in_custom_function, rejoin
from .decisions import Plan, Plans, hold, written
from .decompositions import attention_body
from .execution import enter, keep_values, leave, write_into
from .observer import Observer, watch

if TYPE_CHECKING:
    from .module_hooks import Site


_BARE = "in a checkpointed function that is no module"
_DIFFERENTIATION = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


class FunctionMode(TorchFunctionMode):
    """Applies rules to functions; one object serves all threads, since what runs is kept per thread."""

    def __init__(
        self, entries: tuple[Assignment, ...], formulation: str, defaults: bool | Table, running: Running, tally: Tally
    ) -> None:
        super().__init__()
        self.entries, self.formulation, self.defaults = entries, formulation, defaults is not False
        self.table = default_rules(formulation) if isinstance(defaults, bool) else defaults
        self.running, self.tally = running, tally
        self.met: set[Assignment] = set()
        self.parts = Parts()
        self.observer: Observer | None = None
        self._first_layer = next((entry for entry in entries if entry.key is first_layer), None)
        self._first_sites: set[Site] = set()
        self._plans = Plans(entries, formulation, self.table if self.defaults else None)
        self.frozen = self._plans.frozen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function; the mode is off meanwhile, so what it calls itself is not seen."""
        kwargs = kwargs or {}
        if func in self._plans.inert:
            return func(*args, **kwargs)
        frame = self.running.innermost()
        if frame is None:  # left behind by an interrupt that passed the hooks by
            return func(*args, **kwargs)
        plan = self._plans.of(func, scoped=frame.scope is not None and not frame.keys_inside)
        unseen = self.running.unseen
        unseen.begin()
        carriers: list[Tensor] = []
        if plan.ignored:
            output = func(*args, **kwargs)
        elif not torch.is_grad_enabled():
            output = self._run_unrecorded(plan, frame, args, kwargs)
        else:
            carriers = self._prepare(plan, frame, args, kwargs)
            run = self._call if carriers else self._run_constant
            output = run(plan, frame, args, kwargs, carriers)
        if carriers or plan.ignored:
            unseen.end()  # else autograd should have had nothing to do, or does it out of sight
        if frame.unit is not None and not plan.ignored:
            frame.unit.see(plan.op, args, kwargs, output)
        return output

    def _prepare(self, plan: Plan, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The carriers among the arguments, once all is done that must be done before the function runs."""
        if (plan.can_mutate or kwargs) and mutates(plan.function, args, kwargs):
            self._before_change(args, kwargs)
        if plan.can_drop and drops(plan.name, args, kwargs):
            self.tally.warn_dropout(frame.path)
        carriers = find_carriers(args, kwargs)
        if carriers:
            refuse_compiled(plan.name)
            self.running.carriers_met = True
            self.tally.check_unseen(carriers, frame, self.running)
        return carriers

    def _call(
        self, plan: Plan, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], carriers: list[Tensor]
    ) -> Any:
        func = plan.run
        if frame.shadowed_by is not None:
            self.running.first_layer_met |= plan.op is not None and plan.op.name in LAYERS
            self._count_shadowed(plan, plan.entry, frame)
            if plan.name == "multi_head_attention_forward":
                return self._run_body(frame, attention_body(), *args, **kwargs)
            return func(*args, **kwargs)
        self._count_shadowed(plan, plan.outranked, frame)
        if self.observer is not None:
            about = (frame.path, plan.name, plan.op, plan.function, args, kwargs, carriers)
            run = partial(self._run, plan, frame, args, kwargs, len(carriers))
            return watch(self.observer, self.running, about, run)
        if (
            plan.passive
            and frame.scope is None
            and (len(carriers) == 1 or (plan.op is not None and not plan.op.multiplies))
        ):
            self._count(plan, plan.rule, frame, Status.DEFAULT)
            return func(*args, **kwargs)
        return self._run(plan, frame, args, kwargs, len(carriers))

    def _before_change(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Have everybody who saved what is about to be changed in place keep a copy."""
        for tensor in written(args, kwargs):
            rescue(tensor)
            for call in (call for frame in self.running.frames for call in (frame.call, frame.whole)):
                if call is not None:
                    keep_values(call, tensor)

    def _run(self, plan: Plan, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], carriers: int) -> Any:
        rule, exact = plan.rule, plan.exact
        if plan.varies:
            assert plan.op is not None
            rule = rule_of_call(plan.op, self.table, args, kwargs, carriers, frame.site.module)
            exact = rule is None and plan.exact
        served = frame.scope is not None and plan.op is not None and frame.scope.serves(plan.op, carriers)
        if served and plan.entry is None:
            rule, frame.others, frame.served = frame.scope, frame.others or frame.served, True
        elif exact and rule is None:
            self._count(plan, None, frame, Status.EXACT)
            return plan.run(*args, **kwargs)
        else:
            frame.others |= plan.op is not None
        if self._first_layer is not None and plan.op is not None and plan.op.name in LAYERS:
            bound = frame.site.binding
            if self.takes_first_layer(frame.site, plan.entry or (bound.assignment if bound else None)):
                run, plan = plan.run, replace(plan, rule=self._first_layer.rule, entry=self._first_layer)
                plan.run = run
                rule = plan.rule
            self.running.first_layer_met = True
        if plan.entry is not None and plan.entry.replacement is not None:
            self._count(plan, None, frame, Status.RULED)
            return self._run_replaced(plan, args, kwargs)
        if plan.function in _DIFFERENTIATION and not _in_transform():
            raise RegistrationError(
                f"{plan.name} inside the forward pass, in {place(frame.path)}: with rules in force it would not give "
                f"the model's own values; bind a rule that takes the whole module: {{{frame.path!r}: Epsilon()}}"
            )
        if rule is None:
            run_whole = self._run_uncovered if plan.steps is None else self._run_steps
            return run_whole(plan, frame, args, kwargs)
        return self._run_ruled(plan, rule, frame, args, kwargs)

    def takes_first_layer(self, site: Site, other: Assignment | None) -> bool:
        """Whether a layer in this module is the first that relevance reaches, and its key goes before `other`."""
        entry, frames = self._first_layer, self.running.frames
        if entry is None or (other is not None and self.entries.index(other) < self.entries.index(entry)):
            return False
        if frames[0].path:  # no whole forward pass, but a block of it, recomputed for its backward
            return site in self._first_sites
        if not self.running.first_layer_met:
            self._first_sites.add(site)
        return not self.running.first_layer_met

    def _run_replaced(self, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert plan.entry is not None
        assert plan.entry.replacement is not None
        if plan.op is not None and is_reversed(plan.op):
            args = (args[1], args[0], *args[2:])
        if not mutates(plan.function, args, kwargs):
            return plan.entry.replacement(*args, **kwargs)
        # It gives a new tensor; what it was to be written into is spared until then.
        target = next(written(args, kwargs))
        args, kwargs = map_tensors(lambda tensor: tensor.clone() if tensor is target else tensor, (args, kwargs))
        return write_into(target, plan.entry.replacement(*args, **kwargs))

    def _run_constant(
        self, plan: Plan, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], carriers: list[Tensor]
    ) -> Any:
        if frame.shadowed_by is not None:  # maybe it carries nothing because the rule around has cut it off
            self._count_shadowed(plan, plan.entry, frame)
        output = plan.run(*args, **kwargs)
        if plan.op is not None:
            self.frozen.follow(tensors_in((args, kwargs)), tensors_in(output))
        return output

    def _run_unrecorded(self, plan: Plan, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function while grad is off; in a reentrant checkpoint it will be recomputed."""
        if (plan.can_mutate or kwargs) and mutates(plan.function, args, kwargs):
            self._before_change(args, kwargs)
        frame.served = True  # for all that one can tell
        output = plan.run(*args, **kwargs)
        if self.running.recorded and plan.op is not None and find_carriers(args, kwargs) and not in_custom_function():
            self.tally.cut[f"{plan.name} without gradients in {frame.path or '(model)'}"] = None
        may_carry = plan.op is not None and not plan.exact and frame.shadowed_by is None
        if may_carry and any(t.is_floating_point() for t in tensors_in(output)) and not rejoin(frame):
            self.tally.uncovered(frame.path, plan.name, _BARE)
        return output

    def _run_uncovered(
        self, plan: Plan, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], note: str = ""
    ) -> Any:
        if self.running.seen is not None:
            self.running.seen.told(None, Status.UNCOVERED)
        if plan.cuts:
            self.tally.cut[f"{plan.name} in {frame.path or '(model)'}"] = None
        given = {id(tensor) for tensor in tensors_in((args, kwargs))}
        output = plan.run(*args, **kwargs)
        if any(t.requires_grad and (plan.op is not None or id(t) not in given) for t in tensors_in(output)):
            frame.others = True
            self.tally.uncovered(frame.path, plan.name, note or KNOWINGLY_UNCOVERED.get(plan.name, ""))
        return output

    def _run_ruled(self, plan: Plan, rule: Rule, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if plan.entry is None and plan.op is not None and plan.op.held:
            free_args, free_kwargs = hold(plan.op, args, kwargs)
            if find_carriers(free_args, free_kwargs):
                args, kwargs = free_args, free_kwargs
            else:
                rule = _STOP
        where = f"{plan.name} in {place(frame.path)}"
        call = Call(self.formulation, where, args, kwargs, op=plan.op, function=plan.function)
        call.parts = self.parts
        call.carriers = find_carriers(args, kwargs)
        self.running.stopped |= isinstance(rule, Stop)
        if any(x.is_complex() for x in call.carriers) and not rule.knows_complex:
            return self._run_uncovered(plan, frame, args, kwargs)
        idle = rule.idle(call)
        if not idle and (obstacle := _obstacle(frame, call.carriers)):
            return self._run_uncovered(plan, frame, args, kwargs, obstacle)
        self._count(plan, rule, frame, Status.RULED if plan.entry is not None else Status.DEFAULT)
        if idle:
            return plan.run(*args, **kwargs)
        run = plan.run
        if plan.name == "multi_head_attention_forward":
            if Family.ATTENTION in rule.families:  # projections, products and softmax get their rules
                inside = replace(frame, owner=False, scope=rule, keys_inside=plan.entry is None)
                return self._run_body(inside, attention_body(), *args, **kwargs)
            inside = replace(frame, owner=False, scope=None, inside=frame.path)
            run = partial(self._run_body, inside, attention_body())
        args, kwargs = enter(rule, call)
        frame.call, outer = call, frame.call
        try:
            if (plan.can_mutate or kwargs) and mutates(plan.function, args, kwargs):
                self._before_change(args, kwargs)  # again: entering has saved the inputs too
                call.target = next(written(call.args, call.kwargs), None)
            return leave(rule, call, run(*args, **kwargs))
        finally:
            frame.call = outer

    def _run_steps(self, plan: Plan, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a kernel that is several operations, and give its values the way back of those, each under its rule."""
        assert plan.steps is not None
        try:
            steps = list(tensors_in(self._run_body(frame, plan.steps, *args, **kwargs)))
        except NotImplementedError as reason:
            return self._run_uncovered(plan, frame, args, kwargs, str(reason))
        if self.running.seen is not None:
            self.running.seen.told(None, Status.EXACT)
        if frame.scope is None:
            rows = self.tally.ops if frame.unit is None else frame.unit.rows
            rows[OpKey(frame.path, plan.name, "(taken apart)", None, Status.DEFAULT)] += 1
        ways = iter(steps)
        return map_tensors(lambda value: graft(value, next(ways)), plan.run(*args, **kwargs))

    def _run_body(self, frame: Frame, body: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run what an operation is made of under the mode, as a part of the module that called the operation."""
        self.running.frames.append(frame)
        try:
            with self:
                return body(*args, **kwargs)
        finally:
            self.running.frames.pop()

    def _count(self, plan: Plan, rule: Rule | None, frame: Frame, status: Status) -> None:
        if self.running.seen is not None:
            self.running.seen.told(rule, status)
        if frame.scope is not None and plan.entry is None:
            return  # the rows of the module or of the attention stand for what runs inside
        shown: Rule | str = rule or ("" if plan.entry is None else plan.entry.shown)
        rows = self.tally.ops if frame.unit is None else frame.unit.rows
        rows[OpKey(frame.path, plan.name, shown, plan.entry, status)] += 1
        if plan.entry is not None:
            self.met.add(plan.entry)

    def _count_shadowed(self, plan: Plan, entry: Assignment | None, frame: Frame) -> None:
        """Count a call that a user's key matches but a rule on the module around takes."""
        if entry is not None:
            note = f"inside {frame.inside or frame.path or '(model)'}"
            self.tally.ops[OpKey(frame.path, plan.name, entry.shown, entry, Status.SHADOWED, note)] += 1
            self.met.add(entry)


_STOP = Stop()


def _in_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, ...) is under way."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _obstacle(frame: Frame, carriers: list[Tensor]) -> str:
    """Why the autograd functions of rules cannot be used here; empty if they can."""
    if any(x.layout is not torch.strided for x in carriers):
        return "on sparse tensors"
    if checkpoint_hook() not in (None, frame.checkpoint) and not rejoin(frame):
        return _BARE  # its recomputation happens in no module, so no rule would be there
    if _in_transform():
        return "in a transform of torch.func"
    return ""
