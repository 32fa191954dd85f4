"""Registration: putting a composite on a model, and removing it without a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from torch import nn

from ..canonizers.base import Canonizer
from ..coverage.report import CoverageReport
from ..coverage.rows import Row, Status
from ..errors import RegistrationError
from ..keys import Assignment, Binding, match, names_of
from ..ledger import Ledger, Recorder
from ..ops import Family, autograd_functions, is_autograd_function
from ..rules import RELEVANCE, Epsilon, Pass
from ..rules.defaults import Table
from ..target_module import explained, target_names
from ..torch_internals import eager, pre_hooks_of
from ..tracing import Kept, Written, trace_with
from .activation_modules import RULE as UNIT
from .activation_modules import may_be_unit
from .call_stack import Site
from .checks import check_model, check_sizes, notes_on_dtype, run_eagerly
from .copies import sweep
from .custom_functions import seen_by_modes
from .freezing import freeze, without_averaging
from .function_mode import FunctionMode
from .module_hooks import install, is_our_hook
from .session import Session


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
        programs: Kept[Written] | None = None,
    ) -> None:
        given, model = model, eager(model)
        check_model(explained(model))
        names = names_of(explained(model))
        bindings, self._unmatched = match(entries, names, explained(model))
        _check_rules(entries, bindings.values(), formulation)
        check_sizes((entry.rule for entry in entries if entry.rule is not None), explained(model))
        self.model, self.formulation, self.entries = model, formulation, entries
        self.composite: Any = None
        """The composite that made it."""
        self.session = session = Session(model, entries, formulation, defaults, strict=strict)
        session.mode = FunctionMode(session)
        session.programs = session.programs if programs is None else programs
        with ExitStack() as stack:
            self._notes = notes_on_dtype(model, formulation) + run_eagerly(given, stack)
            self._notes += self._canonize(canonizers, names, bindings, stack)
            self._canonized = session.merged = bool(canonizers)
            names |= target_names(model)
            self._sites = [self._site(module, mounted, bindings) for module, mounted in names.items()]
            session.sites = self._sites
            for site in self._sites:
                install(session, site, stack)
            own = (entry.key for entry in entries if is_autograd_function(entry.key))
            for function in {*autograd_functions(), *own}:
                stack.enter_context(seen_by_modes(function))
            session.frozen += freeze(model, session.policy, stack)
            without_averaging(model, stack)
            session.installed = stack.pop_all()

    def _site(self, module: nn.Module, names: tuple[str, ...], bindings: Mapping[nn.Module, Binding]) -> Site:
        policy = self.session.policy
        by_identity = policy.defaults and policy.table.get(Family.ACTIVATION) == UNIT
        unit = by_identity and may_be_unit(module, bindings.keys())
        return Site(module, names, bindings.get(module), may_be_unit=unit)

    @property
    def active(self) -> bool:
        """Whether it has not been removed."""
        return self.session.active

    def __repr__(self) -> str:
        kind, state = type(explained(self.model)).__name__, "active" if self.active else "removed"
        bound = sum(site.binding is not None for site in self._sites)
        keys = ", ".join(f"{entry}: {entry.shown}" for entry in self.entries[:3])
        more = f", and {len(self.entries) - 3} more" if len(self.entries) > 3 else ""
        ran = "no forward pass yet" if not self.session.tally.executed else str(self.report()).splitlines()[0]
        return (
            f"<Registration on {kind} ({state}, {self.formulation} formulation): keys {{{keys}{more}}}, "
            f"{bound} modules bound; {ran}>"
        )

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
            handle = canonizer.apply(explained(self.model))
            if not callable(getattr(handle, "remove", None)):
                raise TypeError(f"{canonizer!r}.apply() must return a handle with remove(), got {handle!r}")
            stack.callback(handle.remove)
            for module in getattr(handle, "identities", ()):
                bindings.setdefault(module, Binding(names[module], module, Assignment((type(canonizer),), unchanged)))
            notes += getattr(handle, "notes", ())
        return notes

    def remove(self) -> None:
        """Take everything off the model; calling it again does nothing."""
        self.session.remove()

    def __enter__(self) -> Registration:
        if not self.active:
            raise RegistrationError("this registration was removed; register the composite on the model anew")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """Keep a ledger of the forward passes in this context: where does the relevance of the output go?

        The ledger is read after the backward pass, which may come after the context: the books are kept on the autograd
        graph. Values and relevance are the same as without.

        Yields:
            The `Ledger`.

        Raises:
            RegistrationError: another one is being kept.
        """
        session = self.session
        if session.observer is not None:
            raise RegistrationError("a ledger of this registration is being kept already; leave its with block first")
        recorder = session.observer = Recorder(self.formulation, session.tally.alone)
        try:
            yield recorder.ledger
        finally:
            session.observer = None

    def trace(self, example: Any, **options: Any) -> Any:
        """Write the attribution of the model down as one graph; see :meth:`Composite.trace`.

        The graph outlives the registration.

        Args:
            example: inputs as for :func:`attribute`.
            **options: as for :meth:`Composite.trace`, but that no target can be a function.

        Raises:
            TraceError: the model cannot be written down as one graph.
        """
        return trace_with[0](self.composite, self.model, example, registration=self, **options)

    def report(self) -> CoverageReport:
        """Return what is covered by which rule, by which key and how often; before any forward pass, what is bound."""
        tally = self.session.tally
        rows = [self._module_row(site) for site in self._sites if site.binding is not None]
        for site in (site for site in self._sites if site.units):
            kind, own = type(site.module).__name__, site.names
            rows.append(Row("module", own[0], kind, str(UNIT), "", site.units, Status.DEFAULT, aliases=own[1:]))
        rows += tally.rows()
        unmatched = list(self._unmatched)
        if tally.executed:
            met = tally.met()
            unmatched += [str(e) for e in self.entries if not e.of_module and e not in met]
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
        calls, inside, entry = site.calls, site.shadowed_in, site.binding.assignment
        note = ""
        if calls:
            status = Status.RULED
        elif inside is not None:
            status, note = Status.SHADOWED, f"inside {inside or '(model)'}"
        else:
            status = Status.NOT_EXECUTED if self.session.tally.executed else Status.BOUND
        kind = type(site.module).__name__
        return Row(
            "module", site.names[0], kind, str(entry.rule), str(entry), calls, status, aliases=site.names[1:], note=note
        )


def _check_rules(entries: Iterable[Assignment], bindings: Iterable[Binding], formulation: str) -> None:
    """Raise :class:`RuleError` if a rule does not work in this formulation, or on the module that it is bound to."""
    for entry in entries:
        if entry.rule is not None:
            entry.rule.check_formulation(formulation)
    for binding in bindings:
        assert binding.assignment.rule is not None
        binding.assignment.rule.check_module(binding.module, binding.names[0], formulation)


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
    hooks = [hook for module in model.modules() for hook in pre_hooks_of(module)]
    for session in {hook.session for hook in hooks if is_our_hook(hook)}:
        session.remove()
    for module in model.modules():
        sweep(module)
