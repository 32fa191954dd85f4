"""Closing the books: from the journal of a backward pass to the entries of a ledger."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..text.folding import fold_names
from .accounts import Run, by_page
from .books import UNSEEN, Amount, Books, Entry, ModuleEntry, nothing
from .graph_check import GraphCheck, GraphRow
from .journal import Balance
from .operation import Operation

_Key = tuple[str, str, str, str]
_Line = tuple[Any, ...]
"""The key of a line: the quantity, and the entry, module or path that it belongs to."""
_SEED, _INPUTS = ("seed",), ("inputs",)


@dataclass(frozen=True)
class _Place:
    """The positions of one run's samples among all samples; one position if the run's output mixes them."""

    first: int
    count: int
    merged: bool
    step: int = 1
    """The number of backward passes: the rows of one sample are next to each other."""


class _Sheet:
    """The lines of the books: their accounts are collected first, and added up together for each run."""

    def __init__(self, *lines: _Line) -> None:
        self._lines = {line: number for number, line in enumerate(lines)}
        self._told: list[tuple[_Place, Balance, array[int]]] = []
        """For each run, triples of a line, an account, and a sign."""

    def begin(self, place: _Place, balance: Balance) -> None:
        """Add accounts of this balance from now on."""
        self._told.append((place, balance, array("q")))

    def add(self, line: _Line, accounts: Iterable[int], sign: int = 1) -> None:
        """Add accounts to a line."""
        number = self._lines.setdefault(line, len(self._lines))
        told = self._told[-1][2]
        for account in accounts:
            told.extend((number, account, sign))

    def amounts(self, samples: int) -> dict[_Line, Amount]:
        """Return the amounts of all lines, of this many samples."""
        values = torch.zeros(len(self._lines), samples, dtype=torch.float64)
        shared = values.new_zeros(len(self._lines))
        for place, balance, told in self._told:
            if not told:
                continue
            numbers, accounts, signs = torch.frombuffer(told, dtype=torch.int64).view(-1, 3).unbind(1)
            sums = values.new_zeros(len(self._lines), balance.sums.shape[1])
            sums.index_add_(0, numbers, balance.sums[accounts] * signs.unsqueeze(1))
            if place.merged:
                values[:, place.first] += sums.sum(1)
            else:
                values[:, place.first : place.first + place.count * place.step : place.step] += sums[:, :-1]
                shared += sums[:, -1]
        return dict(zip(self._lines, map(Amount, values.unbind(), shared.tolist()), strict=True))


def close(runs: Sequence[Run], alone: Collection[str] = ()) -> Books:
    """Return the books of these forward passes, each with its samples after those of the one before.

    After several backward passes each sample has as many positions, one after the other.

    Args:
        runs: the forward passes.
        alone: modules that were called on their own; each such call is a forward pass with its own seed.
    """
    runs = by_page(runs)
    balances = {run: run.balance() for run in runs}
    places = _places(balances)
    sheet, calls, rules = _Sheet(_SEED, _INPUTS), Counter[_Key](), dict[int, str]()
    modules = Counter((path, kind) for run in runs if not run.page for path, kind, _ in run.modules)
    counted: set[Operation] = set()
    for run, balance in balances.items():
        sheet.begin(places[run.outer or run], balance)
        for operation in run.operations:
            if not operation.passes_on and any(flow.arrived in balance.used for flow in operation.made):
                key = _key(operation, rules)
                calls[key] += operation not in counted
                counted.add(operation)
                _enter(sheet, key, operation)
        for path, kind, flows in run.modules:
            sheet.add(("module", path, kind), [flow.arrived for flow in flows])
        if run.outer is None:
            roots = dict.fromkeys(run.roots)
            sheet.add(_SEED, [flow.arrived for flow in roots])
            sheet.add(_SEED, [flow.sent for flow in roots], -1)  # by operations inside the model
            sheet.add(_INPUTS, [flow.sent for flow in run.inputs])
    samples = max(1, sum(place.count for place in places.values()))
    amounts = sheet.amounts(samples)
    outermost = [run for run in runs if run.outer is None]
    return Books(
        seed=amounts[_SEED],
        inputs=amounts[_INPUTS],
        entries=tuple(_entries(calls, amounts)),
        modules=tuple(_modules(modules, amounts)),
        gaps=tuple(_gap(run, balances, places[run]) for run in outermost),
        check=_joined([run.check for run in outermost if run.check is not None and not run.page]),
        notes=tuple(dict.fromkeys(note for run in outermost for note in _notes(run))) + _apart(alone),
    )


def _key(operation: Operation, rules: dict[int, str]) -> _Key:
    """Return the key of the entry that a call belongs to; `rules` caches the names of rules."""
    rule, status = operation.rule, UNSEEN if operation.status is None else operation.status.value
    if id(rule) not in rules:
        rules[id(rule)] = "" if rule is None else str(rule)
    return operation.path, operation.name, rules[id(rule)], status


def _enter(sheet: _Sheet, key: _Key, operation: Operation) -> None:
    """Enter one call. What it absorbs beyond the amounts of its rule is booked under the rule's kind of the rest."""
    made, sent, rest = [flow.arrived for flow in operation.made], [operation.sent], ("absorbed", key, operation.rest)
    sheet.add(("entered", key), made)
    sheet.add(("left", key), sent)
    for kind, account in operation.known.items():
        sheet.add(("absorbed", key, kind), [account])
        sheet.add(rest, [account], -1)
    for line in rest, ("lost", operation.path):
        sheet.add(line, made)
        sheet.add(line, sent, -1)


def _entries(calls: Counter[_Key], amounts: dict[_Line, Amount]) -> Iterator[Entry]:
    absorbed: dict[_Key, dict[str, Amount]] = {}
    for line, amount in amounts.items():
        if line[0] == "absorbed":
            absorbed.setdefault(line[1], {})[line[2]] = amount
    for key, count in calls.items():
        yield Entry(*key, count, amounts["entered", key], amounts["left", key], absorbed[key])


def _modules(modules: Counter[tuple[str, str]], amounts: dict[_Line, Amount]) -> Iterator[ModuleEntry]:
    """Yield each module with the relevance that it absorbed together with the modules inside."""
    lost = {f"{line[1]}.": amount for line, amount in amounts.items() if line[0] == "lost"}
    none = nothing(len(amounts[_SEED].by_sample))
    for (path, kind), count in modules.items():
        inside = [amount for where, amount in lost.items() if not path or where.startswith(f"{path}.")]
        yield ModuleEntry(path, kind, count, amounts["module", path, kind], sum(inside, none))


def _places(balances: dict[Run, Balance]) -> dict[Run, _Place]:
    """Return the positions of the samples of each run. A run whose output mixes samples counts as one sample."""
    places, first = {}, 0
    mixed = {
        run.journal
        for run, balance in balances.items()
        if run.outer is None and bool(balance.sums[[flow.arrived for flow in run.roots], -1].sum() != 0)
    }
    for run in balances:
        if run.outer is None:
            merged = run.journal in mixed
            pages, count = run.journal.pages, 1 if merged else run.samples
            places[run] = _Place(first + run.page, count, merged, pages)
            first += count * pages * (run.page == pages - 1)
    return places


def _gap(run: Run, balances: dict[Run, Balance], place: _Place) -> float:
    """Return how much of one forward pass is missing: the most of any sample, or that of all if they are mixed."""
    roots = dict.fromkeys(run.roots)
    came, went = [flow.arrived for flow in roots], [flow.sent for flow in (*roots, *run.inputs)]
    rest = balances[run].sums[came].sum(0) - balances[run].sums[went].sum(0)
    for part in (part for part in balances if run in (part, part.outer)):  # with what a checkpoint has recomputed
        seen = [done for done in part.operations if not done.passes_on and done.status is not None]
        sums, made = balances[part].sums, [flow.arrived for operation in seen for flow in operation.made]
        rest += sums[[operation.sent for operation in seen]].sum(0) - sums[made].sum(0)
    if place.merged or rest[-1] != 0:
        return abs(float(rest.sum()))
    return float(rest[:-1].abs().max())


def _apart(alone: Collection[str]) -> tuple[str, ...]:
    where = ", ".join(fold_names(alone))
    return (f"called on their own, each with a seed and samples of its own: {where}",) if alone else ()


def _notes(run: Run) -> list[str]:
    notes = []
    if any(operation.unreadable for operation in run.operations):
        notes.append("relevance left an operation for a tensor that was not among its arguments: that is not read")
    silent = sum(operation.silent for operation in run.operations)
    if silent:
        notes.append(
            f"{silent} paths of the backward pass were not taken, and count as absorbed: it was asked for some inputs "
            f"only; call backward(), or name all inputs in torch.autograd.grad()"
        )
    return notes


def _joined(checks: Sequence[GraphCheck]) -> GraphCheck:
    rows: dict[tuple[str, str, str], int] = {}
    for check in checks:
        for row in check.rows:
            rows[row.name, row.path, row.why] = rows.get((row.name, row.path, row.why), 0) + row.nodes
    return GraphCheck(tuple(GraphRow(*row, nodes) for row, nodes in rows.items()), sum(check.nodes for check in checks))
