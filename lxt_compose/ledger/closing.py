"""Closing the books: from what was written down while relevance flowed to the entries of a ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .accounts import Flow, Operation, Postings, Run
from .data import UNSEEN, Amount, Books, Entry, ModuleEntry
from .graph_check import GraphCheck, GraphRow

_Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class _Place:
    """Where the samples of one run stand among those of all; merged into one if its output mixes them."""

    first: int
    count: int
    merged: bool


class _Sum:
    """An amount of all samples, to which those of single runs are added."""

    def __init__(self, total: int) -> None:
        self.values, self.shared = torch.zeros(total, dtype=torch.float64), 0.0

    def add(self, place: _Place, sums: Tensor) -> None:
        """Add the sums of one run, [samples + 1]."""
        if place.merged:
            self.values[place.first] += sums.sum()
        else:
            self.values[place.first : place.first + place.count] += sums[:-1]
            self.shared += float(sums[-1])

    @property
    def amount(self) -> Amount:
        return Amount(self.values, self.shared)


class _Row:
    """One kind of operation at one place, over all its calls."""

    def __init__(self, total: int) -> None:
        self.calls, self.total = 0, total
        self.entered, self.left = _Sum(total), _Sum(total)
        self.absorbed: dict[str, _Sum] = {}

    def add(self, place: _Place, operation: Operation, samples: int) -> None:
        """Add one call."""
        entered, left = _sum(samples, (flow.arrived for flow in operation.made)), operation.sent.sum(samples)
        rest = entered - left
        for kind, postings in operation.known.items():
            known = postings.sum(samples)
            rest = rest - known
            self._kind(kind).add(place, known)
        self._kind(operation.rest).add(place, rest)
        self.entered.add(place, entered)
        self.left.add(place, left)
        self.calls += 1

    def _kind(self, kind: str) -> _Sum:
        return self.absorbed.setdefault(kind, _Sum(self.total))

    def entry(self, key: _Key) -> Entry:
        """The finished entry."""
        absorbed = {kind: found.amount for kind, found in self.absorbed.items()}
        return Entry(*key, self.calls, self.entered.amount, self.left.amount, absorbed)


class _Module:
    """One module, over all its calls."""

    def __init__(self, total: int) -> None:
        self.calls, self.entered = 0, _Sum(total)


def close(runs: Sequence[Run]) -> Books:
    """The books of these forward passes, each with its samples after those of the one before."""
    places = _places(runs)
    total = max(1, max((place.first + place.count for place in places.values()), default=1))
    rows: dict[_Key, _Row] = {}
    modules: dict[tuple[str, str], _Module] = {}
    seed, inputs = _Sum(total), _Sum(total)
    for run in runs:
        place = places[run.outer or run]
        for operation in run.operations:
            if not operation.passes_on and any(flow.arrived.amounts for flow in operation.made):
                rows.setdefault(_key(operation), _Row(total)).add(place, operation, run.samples)
        for path, kind, flows in run.modules:
            module = modules.setdefault((path, kind), _Module(total))
            module.calls += 1
            module.entered.add(place, _sum(run.samples, (flow.arrived for flow in flows)))
        if run.outer is None:
            seed.add(place, _seed(run))
            inputs.add(place, _sum(run.samples, (flow.sent for flow in run.inputs)))
    entries = tuple(row.entry(key) for key, row in rows.items())
    outermost = [run for run in runs if run.outer is None]
    return Books(
        seed=seed.amount,
        inputs=inputs.amount,
        entries=entries,
        modules=_with_losses(modules, entries, total),
        gaps=tuple(_gap(run, [other for other in runs if other.outer is run], places[run]) for run in outermost),
        check=_joined([run.check for run in outermost if run.check is not None]),
        notes=tuple(dict.fromkeys(note for run in outermost for note in _notes(run))),
    )


def _key(operation: Operation) -> _Key:
    status = UNSEEN if operation.status is None else operation.status.value
    return operation.path, operation.name, "" if operation.rule is None else str(operation.rule), status


def _sum(samples: int, postings: Iterable[Postings]) -> Tensor:
    return sum((p.sum(samples) for p in postings), torch.zeros(samples + 1, dtype=torch.float64))


def _places(runs: Sequence[Run]) -> dict[Run, _Place]:
    """Where the samples of each run stand. A run whose output mixes samples counts as one."""
    places, first = {}, 0
    for run in runs:
        if run.outer is None:
            merged = bool(_sum(run.samples, (flow.arrived for flow in run.roots))[-1] != 0)
            places[run] = _Place(first, 1 if merged else run.samples, merged)
            first += places[run].count
    return places


def _seed(run: Run) -> Tensor:
    """What arrived at the outputs, less what operations inside the model sent there."""
    roots: list[Flow] = list(dict.fromkeys(run.roots))
    return _sum(run.samples, (flow.arrived for flow in roots)) - _sum(run.samples, (flow.sent for flow in roots))


def _gap(run: Run, recomputed: Sequence[Run], place: _Place) -> float:
    """What is missing of one forward pass: the most of a sample, or of all where they cannot be told apart."""
    rest = _seed(run) - _sum(run.samples, (flow.sent for flow in run.inputs))
    for part in (run, *recomputed):
        for operation in part.operations:
            if not operation.passes_on and operation.status is not None:
                rest += operation.sent.sum(run.samples) - _sum(run.samples, (flow.arrived for flow in operation.made))
    if place.merged or rest[-1] != 0:
        return abs(float(rest.sum()))
    return float(rest[:-1].abs().max())


def _with_losses(
    modules: dict[tuple[str, str], _Module], entries: Sequence[Entry], total: int
) -> tuple[ModuleEntry, ...]:
    """Each module with what it, and every module in it, absorbed."""
    losses: dict[str, _Sum] = {}
    for entry in entries:
        lost, path = entry.lost, entry.path
        while True:
            around = losses.setdefault(path, _Sum(total))
            around.values += lost.by_sample
            around.shared += lost.shared
            if not path:
                break
            path = path.rpartition(".")[0]
    nothing = _Sum(total)
    return tuple(
        ModuleEntry(path, kind, found.calls, found.entered.amount, losses.get(path, nothing).amount)
        for (path, kind), found in modules.items()
    )


def _notes(run: Run) -> list[str]:
    notes = []
    if any(operation.unreadable for operation in run.operations):
        notes.append("relevance left an operation for a tensor that was not among its arguments: that is not read")
    silent = sum(operation.silent for operation in run.operations)
    if silent:
        notes.append(
            f"{silent} ways back were not taken, and count as absorbed: the backward pass was asked for some inputs "
            f"only; call backward(), or name all inputs in torch.autograd.grad()"
        )
    return notes


def _joined(checks: Sequence[GraphCheck]) -> GraphCheck:
    rows: dict[tuple[str, str, str], int] = {}
    for check in checks:
        for row in check.rows:
            rows[row.name, row.path, row.why] = rows.get((row.name, row.path, row.why), 0) + row.nodes
    return GraphCheck(tuple(GraphRow(*row, nodes) for row, nodes in rows.items()), sum(check.nodes for check in checks))
