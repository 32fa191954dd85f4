"""Registration: a composite that is on a model now; how it gets there, and how it leaves without a trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import _get_current_function_mode_stack

from ..autograd import saved_values as saving
from ..autograd.functions import NoRelevance
from ..autograd.trees import map_tensors, tensors_in
from ..canonizers.base import Canonizer
from ..coverage.report import CoverageReport
from ..coverage.rows import Row, Status
from ..coverage.tally import Tally
from ..errors import RegistrationError
from ..keys import Assignment, Binding, match, names_of
from ..ledger import Ledger, Recorder
from ..rules import RELEVANCE, Epsilon, Pass, find_carriers
from ..rules.defaults import Table
from . import activation_modules as units
from .call_stack import Running
from .frozen_weights import Frozen
from .function_mode import FunctionMode
from .module_hooks import Site, is_our_hook, sweep
from .unseen import latest


class Registration:
    """A composite on a model: works from the moment it is made until :meth:`remove`; a context manager.

    While it is there, the parameters of the model are frozen (``requires_grad=False``): they are constants, and
    their ``.grad`` never sees relevance. Made by :meth:`Composite.register`.
    """

    def __init__(
        self,
        model: nn.Module,
        entries: tuple[Assignment, ...],
        formulation: str,
        *,
        defaults: bool | Table,
        strict: bool,
        canonizers: tuple[Canonizer, ...] = (),
    ) -> None:
        _check_model(model)
        names = names_of(model)
        bindings, self._unmatched = match(entries, names, model)
        for entry in entries:
            if entry.rule is not None:
                entry.rule.check_formulation(formulation)
        for binding in bindings.values():
            assert binding.assignment.rule is not None
            binding.assignment.rule.check_module(binding.module, binding.names[0], formulation)
        self.model, self.formulation = model, formulation
        self.running, self.tally = Running(), Tally(strict=strict)
        self.mode = FunctionMode(entries, formulation, defaults, self.running, self.tally)
        self.entries = entries
        with ExitStack() as stack:
            self._canonized, self._notes = bool(canonizers), self._canonize(canonizers, names, bindings, stack)
            self._sites = [Site(self, module, mounted, bindings.get(module)) for module, mounted in names.items()]
            for site in self._sites:
                site.install(stack)
            _freeze(model, stack, self.mode.frozen)
            self._installed = stack.pop_all()
        self.active = True

    def _canonize(
        self,
        canonizers: tuple[Canonizer, ...],
        names: dict[nn.Module, tuple[str, ...]],
        bindings: dict[nn.Module, Binding],
        stack: ExitStack,
    ) -> list[str]:
        """Apply the canonizers, bind what they made an identity where no key did, and return their notes."""
        notes: list[str] = []
        unchanged = Pass() if self.formulation == RELEVANCE else Epsilon(0.0)
        for canonizer in canonizers:
            handle = canonizer.apply(self.model)
            if not callable(getattr(handle, "remove", None)):
                raise TypeError(f"{canonizer!r}.apply() must return a handle with remove(), got {handle!r}")
            stack.callback(handle.remove)
            for module in getattr(handle, "identities", ()):
                bindings.setdefault(module, Binding(names[module], module, Assignment((type(canonizer),), unchanged)))
            notes += getattr(handle, "notes", ())
        return notes

    def remove(self) -> None:
        """Take everything off the model again; may be called any number of times."""
        self.active = False
        self._installed.close()
        self.mode.parts.close()
        self.running.frames.clear()  # some are left if this is called during a forward pass, or after an interrupt
        self.end()

    def __enter__(self) -> Registration:
        if not self.active:
            raise RegistrationError("this registration was removed; register the composite on the model anew")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An outermost module begins in this thread: bring the function mode in, last of all.

        Raises:
            RegistrationError: nothing can be recorded, since inference mode is on; or another composite is at work.
        """
        running = self.running
        running.start()
        saving.prune()
        if torch.is_inference_mode_enabled() or any(t.is_inference() for t in tensors_in((args, kwargs))):
            raise RegistrationError(
                f"relevance needs a recorded forward pass, but {type(self.model).__name__} was called in inference "
                f"mode or with a tensor made there; call it outside torch.inference_mode(), with inputs made outside"
            )
        for mode in _get_current_function_mode_stack():
            if isinstance(mode, FunctionMode) and mode is not self.mode and (outer := mode.running.innermost()):
                raise RegistrationError(
                    f"{type(self.model).__name__} is called inside {type(outer.site.registration.model).__name__}, and "
                    f"both have a composite, which would act twice; remove one, or register on the outer model alone"
                )
        self.tally.executed = True
        running.root_inputs = find_carriers(args, kwargs)
        if self.mode not in _get_current_function_mode_stack():  # an interrupt may have left it there
            self.mode.__enter__()
        if self.mode.observer is not None:
            self.mode.observer.start(args, kwargs)

    def end(self) -> None:
        """The outermost module has ended in this thread: take the function mode out."""
        if _get_current_function_mode_stack()[-1:] == [self.mode]:
            self.mode.__exit__(None, None, None)
        saving.prune()
        self.running.start()
        self.running.ended = latest()

    def finish(self, site: Site, output: Any) -> Any:
        """The output of an outermost module.

        Raises:
            RegistrationError: nothing in the whole forward pass required grad.
        """
        running = self.running
        outputs = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
        if site.module is not self.model or not torch.is_grad_enabled() or any(t.requires_grad for t in outputs):
            return output
        if not (running.carriers_met or running.root_inputs):
            raise RegistrationError(
                f"no relevance can flow: no input of {type(self.model).__name__} requires grad, and nothing inside "
                f"does; call x.requires_grad_() on a floating point input before the forward pass (integer inputs such "
                f"as token ids cannot: pass their embeddings, e.g. inputs_embeds=)"
            )
        if (running.stopped or not self.tally.cut) and running.root_inputs and outputs:
            first, inputs = outputs[0], running.root_inputs
            if not self.tally.all_stopped:
                self.tally.all_stopped = True
                warnings.warn(
                    f"no input of {type(self.model).__name__} gets any relevance: all of it ends at rules that stop it "
                    f"(square roots, powers, norms by default) or at operands that are held constant; see the report",
                    stacklevel=2,
                )
            return map_tensors(lambda t: NoRelevance.apply(t, *inputs) if t is first else t, output)
        return output

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """Keep the books of the forward passes in this context: where does the relevance of the output go?

        The ledger is read after the backward pass, which may come after the context: the books are kept on the autograd
        graph. Values and relevance are the same as without.

        Yields:
            The :class:`~lxt_compose.ledger.Ledger`.

        Raises:
            RegistrationError: another one is being kept.
        """
        if self.mode.observer is not None:
            raise RegistrationError("a ledger of this registration is being kept already; leave its with block first")
        recorder = self.mode.observer = Recorder(self.formulation, self.tally.alone)
        try:
            yield recorder.ledger
        finally:
            self.mode.observer = None

    def report(self) -> CoverageReport:
        """What is covered by which rule, by which key and how often; before any forward pass, what is bound."""
        tally = self.tally
        rows = [self._module_row(site) for site in self._sites if site.binding is not None]
        for site, calls in tally.units.items():
            kind, own = type(site.module).__name__, site.names
            rows.append(Row("module", own[0], kind, str(units.RULE), "", calls, Status.DEFAULT, aliases=own[1:]))
        for key, calls in list(tally.ops.items()):
            given = "" if key.key is None else str(key.key)
            rows.append(Row("op", key.path, key.name, str(key.rule), given, calls, key.status, note=key.note))
        unmatched = list(self._unmatched)
        if tally.executed:
            unmatched += [str(e) for e in self.entries if not e.of_module and e not in self.mode.met]
        notes = self._notes + tally.notes(canonized=self._canonized)
        return CoverageReport(
            rows,
            unmatched=unmatched,
            executed=tally.executed,
            notes=notes,
            in_parts=bool(tally.alone),
            carried=tally.carried,
        )

    def _module_row(self, site: Site) -> Row:
        assert site.binding is not None
        calls, inside, entry = self.tally.modules[site], self.tally.shadowed.get(site), site.binding.assignment
        note = ""
        if calls:
            status = Status.RULED
        elif inside is not None:
            status, note = Status.SHADOWED, f"inside {inside or '(model)'}"
        else:
            status = Status.NOT_EXECUTED if self.tally.executed else Status.BOUND
        kind = type(site.module).__name__
        return Row(
            "module", site.names[0], kind, str(entry.rule), str(entry), calls, status, aliases=site.names[1:], note=note
        )


def remove(model: nn.Module) -> None:
    """Take every composite off a model or a part of it, as ``registration.remove()`` does, for when that is lost.

    Args:
        model: any module; if it is a part of the model that a composite was registered on, the whole is freed. Of a
            copy that was made meanwhile the empty hooks are taken off that it has until its first call.

    Raises:
        TypeError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"remove() takes a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    for registration in [hook.site.registration for hook in hooks if is_our_hook(hook)]:
        registration.remove()
    for module in model.modules():
        sweep(module)


def _check_model(model: nn.Module) -> None:
    """Raise if a composite cannot work on this model, or is there already."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"register() takes a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"{name!r} in {type(model).__name__}" if name else type(model).__name__
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or type(module).__name__ == "OptimizedModule":
            raise RegistrationError(
                f"{where} is compiled, and compiled code does not run hooks; register on the model before "
                f"torch.compile (model._orig_mod of a compiled one)"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise RegistrationError(
                f"{where} is a TorchScript module, whose operations cannot be seen; use the original"
            )
        if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise RegistrationError(
                f"{where} has parameters that are not initialized yet; run a forward pass before you register"
            )
        if any(parameter.is_inference() for parameter in module.parameters(recurse=False)):
            raise RegistrationError(
                f"{where} has parameters that were made in inference mode, which autograd refuses; build or load the "
                f"model outside torch.inference_mode()"
            )
        if any(is_our_hook(hook) for hook in module._forward_pre_hooks.values()):
            raise RegistrationError(
                f"{where} has a composite registered already; call remove() on that registration, or "
                f"lxt_compose.remove(model), or leave its with block first"
            )


def _freeze(model: nn.Module, stack: ExitStack, frozen: Frozen) -> None:
    """Make all parameters constants, and put what restores their flags on the stack."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                stack.callback(_thaw, module, name, parameter)
                frozen.add(parameter)
                parameter.requires_grad_(False)


def _thaw(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Give a parameter its flag back, and also one that has taken its place meanwhile, and its flag with it."""
    parameter.requires_grad_(True)
    successor = getattr(module, name, None)
    if isinstance(successor, nn.Parameter) and successor is not parameter:
        successor.requires_grad_(True)
