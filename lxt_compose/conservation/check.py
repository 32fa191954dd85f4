"""The conservation check compares the relevance into and out of every rule, per call and per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tabulate import tabulate
from torch import Tensor

from ..autograd.saved_values import keep
from ..coverage.rows import Status
from ..errors import ConservationError, RegistrationError, place
from ..keys import Assignment
from ..ledger import Recorder
from ..ledger.accounts import Graph, Key, Run
from ..ledger.edge import Edge
from ..ledger.journal import Balance, Journal
from ..ledger.layouts import Layout
from ..ledger.meters import View, view_of
from ..ledger.operation import Operation
from ..ledger.rows import by_sample
from ..rules import OpCall
from ..torch_internals import modes_off
from .ran import Before, Ran

if TYPE_CHECKING:
    from ..runtime.registration import Registration


_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Checked:
    """One call of one operation under one rule; amounts are float64 tensors with one value for each sample.

    ``entered`` is the relevance that arrived at its outputs, ``left`` what it handed on to its inputs, ``absorbed``
    what its rule keeps by its formula, by kind (bias, stabilizer, softmax), ``size`` the sum of ``|R|`` that
    arrived. Where the samples cannot be told apart all amounts have one value, for all of them.
    """

    path: str
    name: str
    rule: str
    entered: Tensor
    left: Tensor
    absorbed: Mapping[str, Tensor]
    size: Tensor

    @property
    def missing(self) -> Tensor:
        """The relevance that arrived and was neither handed on nor kept; negative where some was created."""
        return self.entered - self.left - sum(self.absorbed.values(), torch.zeros_like(self.entered))

    def violations(self, atol: float, rtol: float) -> list[int]:
        """Return the samples where more is missing than ``atol + rtol * size``, or something is not finite."""
        fits = self.missing.abs() <= atol + rtol * self.size
        return (~fits).nonzero().flatten().tolist()

    def describe(self, sample: int) -> str:
        """Return a line for an error message."""
        parts = {"in": self.entered, "out": self.left, **self.absorbed, "missing": self.missing}
        amounts = ", ".join(f"{name} {float(values[sample]):.6g}" for name, values in parts.items())
        which = f"sample {sample}" if len(self.entered) > 1 else "all samples"
        return f"{self.name} in {place(self.path)} under {self.rule}, {which}: {amounts}"


class ConservationCheck:
    """What :func:`check_conservation` has seen so far; ``str()`` gives a table."""

    def __init__(self, watcher: Watcher, atol: float, rtol: float) -> None:
        self._watcher, self.atol, self.rtol = watcher, atol, rtol

    @property
    def rows(self) -> list[Checked]:
        """Every call of an operation under a rule that relevance has reached, in the order of execution."""
        return self._watcher.rows()

    @property
    def violations(self) -> list[tuple[Checked, int]]:
        """The calls and samples in which relevance was lost or created, those nearest to the output first."""
        return [(row, sample) for row in reversed(self.rows) for sample in row.violations(self.atol, self.rtol)]

    def raise_violations(self) -> None:
        """Raise if relevance was lost or created.

        Raises:
            ConservationError: it was; the message names module, rule, and the amounts in, out and kept.
            RegistrationError: no relevance has flowed.
        """
        if not self.rows:
            raise RegistrationError(
                "nothing was checked, since no relevance has flowed through an operation with a rule; run the forward "
                "pass and the backward pass inside the context"
            )
        found = self.violations
        if found:
            lines = [row.describe(sample) for row, sample in found[:_SHOWN]]
            more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
            raise ConservationError("relevance is not conserved:\n  " + "\n  ".join([*lines, *more]), found)

    def __str__(self) -> str:
        rows = self.rows
        kinds = list(dict.fromkeys(kind for row in rows for kind in row.absorbed))
        table = []
        for row in rows:
            kept = [_short(row.absorbed[kind]) if kind in row.absorbed else "" for kind in kinds]
            mark = "NOT CONSERVED" if row.violations(self.atol, self.rtol) else ""
            most = f"{float(row.missing.abs().max()):.1e}"
            table.append([row.path, row.name, row.rule, _short(row.entered), _short(row.left), *kept, most, mark])
        heads = ["where", "what", "rule", "in", "out", *kinds, "missing, at most", ""]
        return tabulate(table, heads, disable_numparse=True)


def _short(amounts: Tensor) -> str:
    return f"{float(amounts.sum()):.4g}"


@contextmanager
def check_conservation(
    registration: Registration, atol: float = 1e-8, rtol: float = 1e-4
) -> Iterator[ConservationCheck]:
    """Compare the relevance into and out of every rule, for each call and each sample; raise at the end.

    ``|R_out - R_in - bias - stabilizer - softmax| <= atol + rtol * sum |R_out|``, where R_out is the relevance of the
    outputs of an operation, R_in what its rule hands on to the inputs, and the rest is what the rule keeps by its
    equation, computed again from the operation's values. A function in place of a rule has no known equation, and must
    hand on everything. Works in both formulations. Run the forward and the backward pass inside the context. Operations
    run a second time, so the check is for tests and for finding faults.

    Args:
        registration: a composite that is on a model now.
        atol: absolute tolerance, in the units of relevance.
        rtol: tolerance relative to the sum of ``|R|`` that arrived.

    Yields:
        The `ConservationCheck`, whose rows and violations can be read at any time.

    Raises:
        ConservationError: relevance was lost or created somewhere.
        RegistrationError: nothing was checked, or a ledger is being kept already.
    """
    session = registration.session
    if session.observer is not None:
        raise RegistrationError(
            "this registration is watched already, by a ledger or a check; leave its with block first"
        )
    watcher = Watcher(registration.formulation, registration.entries)
    check = ConservationCheck(watcher, atol, rtol)
    session.observer = watcher
    try:
        yield check
    finally:
        session.observer = None
    check.raise_violations()


class Watcher(Recorder):
    """A recorder that also computes what each rule keeps."""

    def __init__(self, formulation: str, entries: tuple[Assignment, ...]) -> None:
        super().__init__(formulation)
        self._replacements = [entry for entry in entries if entry.replacement is not None]
        self._shown: dict[Operation, str] = {}
        self._before: dict[Operation, Before] = {}
        self._accounts: dict[Operation, dict[str, int]] = {}
        """Of each operation: its size, and what its rule keeps, by kind."""

    def begin(self, call: OpCall) -> Operation:
        """See :class:`~lxt_compose.runtime.observer.Observer`."""
        operation = super().begin(call)
        with modes_off():
            self._before[operation] = Before(call)
        return operation

    def _produced(
        self,
        run: Run,
        graph: Graph,
        operation: Operation,
        key: Key,
        z: Tensor,
        layout: Layout | None,
        call: OpCall | None = None,
        *,
        past: bool = False,
    ) -> Edge:
        edge = super()._produced(run, graph, operation, key, z, layout, call, past=past)
        before = self._before.get(operation)
        if before is None or (operation.rule is None and operation.status is not Status.RULED):
            return edge
        self._shown[operation] = self._rule_of(operation)
        own = Edge(None, layout, edge.flow, run.samples) if past else edge
        ran = Ran(operation, self.formulation, before, keep(z), own)
        if not any(kept.value.is_complex() for kept in (*before.values, ran.output)):
            accounts = self._accounts.setdefault(operation, {})
            view = view_of(z) if past else None
            key[0].register_prehook(_asking(ran, key[1], view, run.journal, accounts))
        return edge

    def _rule_of(self, operation: Operation) -> str:
        """Return the rule of an operation, or the name of the function that has run in its place."""
        if operation.rule is not None:
            return str(operation.rule)
        return next(str(e.shown) for e in self._replacements if e.serves(operation.function, operation.op))

    def rows(self) -> list[Checked]:
        """Return what was checked."""
        balances = [(run, run.journal.balance()) for run in list(self.runs)]
        done = [(operation, balance) for run, balance in balances for operation in run.operations]
        return [self._row(operation, balance) for operation, balance in done if self._accounts.get(operation)]

    def _row(self, operation: Operation, balance: Balance) -> Checked:
        amounts = {
            "in": balance.sums[[flow.arrived for flow in operation.made]].sum(0),
            "out": balance.sums[operation.sent],
            **{name: balance.sums[account] for name, account in self._accounts[operation].items()},
        }
        # Samples may be known on one side alone: then compare the sums.
        together = any(bool(values[-1] != 0) for values in amounts.values())
        amounts = {name: v.sum().reshape(1) if together else v[:-1] for name, v in amounts.items()}
        kept = {name.removeprefix("kept "): v for name, v in amounts.items() if name.startswith("kept ")}
        rule = self._shown[operation]
        return Checked(operation.path, operation.name, rule, amounts["in"], amounts["out"], kept, amounts["size"])


def _asking(
    ran: Ran, number: int, view: View | None, journal: Journal, accounts: dict[str, int]
) -> Callable[[Sequence[Tensor | None]], None]:
    def hook(slots: Sequence[Tensor | None]) -> None:
        slot = slots[number]
        if slot is None:
            return
        with torch.no_grad():
            slot = slot if view is None else view.of(slot)
            size = by_sample(ran.relevance(slot).abs(), ran.edge.layout, ran.edge.samples)
            known = {} if ran.rule is None else ran.rule.absorbed(ran.call())
            amounts = {f"kept {kind}": ran.by_sample(amount(slot)) for kind, amount in known.items()}
            for name, amount in {"size": size, **amounts}.items():
                if name not in accounts:
                    accounts[name] = journal.open()
                journal.post(amount, accounts[name])

    return hook
