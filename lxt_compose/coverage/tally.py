"""Counts of what ran during forward passes, from which the coverage report is made."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UncoveredError, place
from ..keys import Assignment
from ..ops import Family, NormKind, forward_name, op_named
from ..rules import Epsilon, Norm, Rule, Stop
from ..text.folding import fold_names
from .rows import Row, Status


class OpKey(NamedTuple):
    """What makes one row of operations."""

    path: str
    name: str
    rule: Rule | str
    key: Assignment | None
    status: Status
    note: str = ""

    def __hash__(self) -> int:
        """Hash the parts that hash fast, which differ between most rows."""
        return hash((self.path, self.name, self.status))


class Count:
    """How often the operations of one row ran."""

    __slots__ = ("calls", "key", "reached", "watched")

    def __init__(self, key: OpKey) -> None:
        self.key, self.calls = key, 0
        self.watched = 0
        """The number of calls in which a hook notes whether relevance arrives."""
        self.reached = False

    def watch(self, outputs: Iterable[Tensor]) -> None:
        """Add a hook that notes whether relevance arrives at the outputs of one call."""
        nodes = {tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None}
        self.watched += bool(nodes)
        for node in nodes:
            node.register_prehook(self._arrived)

    def _arrived(self, _: object) -> None:
        self.reached = True

    def row(self) -> Row:
        """Return the row of the report."""
        path, name, rule, key, status, note = self.key
        return Row("op", path, name, str(rule), "" if key is None else str(key), self.calls, status, note=note)


def _not_covered(key: OpKey) -> UncoveredError:
    return UncoveredError(
        f"{key.name} in {place(key.path)} carries relevance, but no rule covers it, so the plain "
        f"gradient would pass; give it a rule (a key for the function or for a module around it, "
        f"such as {{{key.path!r}: Epsilon()}}), or use strict=False and read the report"
    )


class Tally:
    """Counts of operations by path, rule and status, and the remarks of a report.

    Attributes:
        executed: whether a forward pass has begun.
        carried: whether relevance was carried to an output.
        alone: modules that were called on their own rather than by the model.
        cut: where the model itself cuts a carrier off from its history, as "Tensor.detach in encoder".
        remarks: other notes under the report.
        all_stopped: whether rules stopped all relevance of a whole output, so that every input got 0.
    """

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.executed = self.carried = self.all_stopped = False
        self.alone: dict[str, None] = {}
        self.cut: dict[str, None] = {}
        self.remarks: dict[str, None] = {}
        self._counts: dict[OpKey, Count] = {}
        self._warned: set[str] = set()

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Restore all counts when the context ends."""
        counted = {count: (count.calls, count.watched, count.reached) for count in self._counts.values()}
        state = {name: copy.copy(value) for name, value in vars(self).items() if name != "_counts"}
        try:
            yield
        finally:
            vars(self).update(state)
            for count in self._counts.values():  # new rows stay, since decisions that are kept count in them
                count.calls, count.watched, count.reached = counted.get(count, (0, 0, False))

    def count(self, key: OpKey) -> Count:
        """Return the count of a row; a new one if there is none."""
        found = self._counts.get(key)
        if found is None:
            found = self._counts[key] = Count(key)
        return found

    def counted(self) -> list[Count]:
        """Return the rows that have run, in the order of first execution."""
        return [count for count in list(self._counts.values()) if count.calls]

    def rows(self) -> list[Row]:
        """Return the rows of the report for operations."""
        return [count.row() for count in self.counted()]

    def met(self) -> set[Assignment]:
        """Return the keys that have matched an operation."""
        return {count.key.key for count in self.counted() if count.key.key is not None}

    def notes(self, *, canonized: bool) -> list[str]:
        """Return the notes under the table of a report; `canonized` if the composite has canonizers."""
        notes = []
        keys = [count.key for count in self.counted()]
        if not canonized and any(isinstance(key.rule, Epsilon) and _is_batch_norm(key.name) for key in keys):
            notes.append(
                "batch norms keep what is due to their shift, as biases do; where they follow a layer, "
                "canonizers=[MergeBatchNorm()] explains both as one; where a layer follows them, so does "
                "MergeBatchNormForward()"
            )
        if any(isinstance(key.rule, Norm) and key.key is None and _is_batch_norm(key.name) for key in keys):
            notes.append(
                "batch norms use the statistics of the batch (train mode), so outputs and relevance depend on all of "
                "its samples; call model.eval() first"
            )
        if self.alone:
            alone = ", ".join(fold_names(self.alone))
            notes.append(f"called on their own, so operations between them were not seen: {alone}")
        if self.cut:
            notes.append(f"cut off by the model itself, so no relevance passes: {', '.join(fold_names(self.cut))}")
        if self.all_stopped:
            said = "every input got 0: all relevance ended at Stop rules, or at operands that are held constant"
            notes.append("; ".join(filter(None, (said, self.remedy_for_stops()))))
        return notes + list(self.remarks)

    def remedy_for_stops(self) -> str:
        """Return where the default rules stopped relevance, and the keys that let it pass; empty if none did."""
        keys = [count.key for count in self.counted() if isinstance(count.key.rule, Stop) and count.key.key is None]
        if not keys:
            return ""
        places = ", ".join(fold_names(dict.fromkeys(f"{key.name} in {key.path or '(model)'}" for key in keys)))
        written = ", ".join(dict.fromkeys(_key_for(key.name) for key in keys))
        return f"by default that is {places}; to let it pass, give it a rule: {{{written}}}"

    def uncovered(self, path: str, name: str, note: str = "", outputs: Iterable[Tensor] = ()) -> None:
        """Count an operation that relevance passes through without a rule.

        Args:
            path: where it ran.
            name: what it is.
            note: why no rule covers it.
            outputs: what it made, if that is known: then :meth:`forget_unreached` can tell whether it counts.

        Raises:
            UncoveredError: the composite is strict.
        """
        key = OpKey(path, name, "", None, Status.UNCOVERED, note)
        if self.strict:
            raise _not_covered(key)
        count = self.count(key)
        count.calls += 1
        count.watch(outputs)

    def forget_unreached(self, *, strict: bool) -> None:
        """Drop, after a backward pass, uncovered operations at which no relevance arrived, such as a loss of labels.

        Raises:
            UncoveredError: another one is left, and `strict` is set.
        """
        for key, count in list(self._counts.items()):
            if key.status is Status.UNCOVERED and count.calls:
                if count.watched == count.calls and not count.reached:
                    del self._counts[key]
                elif strict:
                    raise _not_covered(key)

    def warn_dropout(self, path: str) -> None:
        """Warn, once for each path, that dropout makes relevance random."""
        if path in self._warned:
            return
        self._warned.add(path)
        warnings.warn(
            f"dropout is active in {place(path)}, so relevance is that of a randomly thinned model; "
            f"call model.eval() first",
            stacklevel=2,
        )


def _is_batch_norm(name: str) -> bool:
    op = op_named(name)
    return op is not None and op.traits.norm is NormKind.BATCH


def _key_for(shown: str) -> str:
    """Return a key for the operation that the report calls so, and a rule that passes relevance through it."""
    op = op_named(shown)
    if op is None:  # one that a user has registered
        return f"{shown.removesuffix('.apply')}: Epsilon()"
    name = forward_name(op)
    rule = "Identity()" if op.family in (Family.STATISTIC, Family.DIVISION) else "Epsilon()"
    return f"{'torch' if hasattr(torch, name) else 'F'}.{name}: {rule}"
