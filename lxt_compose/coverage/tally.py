"""What ran during forward passes, counted as it happens: the raw material of the coverage report."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ..errors import UncoveredError, place
from ..keys import Assignment
from ..rules import Epsilon, Rule
from ..runtime.unseen import made_since
from ..text.folding import fold_names
from .rows import Status

if TYPE_CHECKING:
    from ..runtime.module_hooks import Site

from ..runtime.call_stack import Frame, Running


class OpKey(NamedTuple):
    """What operations are counted by."""

    path: str
    name: str
    rule: Rule | str
    key: Assignment | None
    status: Status
    note: str = ""

    def __hash__(self) -> int:
        """Of what is quickly hashed, which tells most of them apart; this is asked for at each operation."""
        return hash((self.path, self.name, self.status))


class Tally:
    """Counts of modules and operations by path, rule and status; warnings are given once."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.executed = self.carried = False
        self.ops: Counter[OpKey] = Counter()
        self.modules: Counter[Site] = Counter()
        self.units: Counter[Site] = Counter()
        self.shadowed: dict[Site, str] = {}
        self.alone: dict[str, None] = {}
        """Modules that were called on their own rather than by the model."""
        self.cut: dict[str, None] = {}
        """Where the model itself cuts a carrier off from its history, as "Tensor.detach in encoder"."""
        self._warned: set[str] = set()
        self.all_stopped = False
        """Whether rules stopped all relevance of a whole output, so that every input got 0."""

    def notes(self, *, canonized: bool) -> list[str]:
        """What the table of a report cannot say; `canonized` if the composite has canonizers."""
        notes = []
        if not canonized and any(key.name == "batch_norm" and isinstance(key.rule, Epsilon) for key in self.ops):
            notes.append(
                "batch norms keep what is due to their shift, as biases do; where they follow a layer, "
                "canonizers=[MergeBatchNorm()] explains both as one"
            )
        if self.alone:
            alone = ", ".join(fold_names(self.alone))
            notes.append(f"called on their own, so operations between them were not seen: {alone}")
        if self.cut:
            notes.append(f"cut off by the model itself, so no relevance passes: {', '.join(fold_names(self.cut))}")
        if self.all_stopped:
            notes.append("every input got 0: all relevance ended at Stop rules, or at operands that are held constant")
        return notes

    def uncovered(self, path: str, name: str, note: str = "") -> None:
        """Count an operation that relevance passes through without a rule.

        Raises:
            UncoveredError: the composite is strict.
        """
        if self.strict:
            raise UncoveredError(
                f"{name} in {place(path)} carries relevance, but no rule covers it, so the plain "
                f"gradient would pass; give it a rule (a key for the function or for a module around it, "
                f"such as {{{path!r}: Epsilon()}}), or use strict=False and read the report"
            )
        self.ops[OpKey(path, name, "", None, Status.UNCOVERED, note)] += 1

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

    def check_between(self, running: Running) -> None:
        """Count the operations that ran between the outermost module that ended last and the one that begins."""
        if running.ended is not None:
            for name in (name for x in running.root_inputs for name in made_since(x, running.ended)):
                self.uncovered("", name, "run between parts of the model that were called on their own")

    def check_unseen(self, tensors: list[Tensor], frame: Frame, running: Running) -> None:
        """Count the operations that made these tensors and that the function mode did not see."""
        if frame.shadowed_by is None:
            for name, note in running.unseen.among(tensors):
                self.uncovered(frame.path, name, note)
