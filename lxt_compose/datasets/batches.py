"""Explaining batches of samples; a sample that fails gets a row of its own with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..attribution import Attribution, attribute
from ..autograd.trees import map_tensors
from ..errors import MatchError, RegistrationError, RuleError, TraceError, UncoveredError
from .coverage import Coverage
from .rows import Row, failed_row, rows_of
from .samples import Numbered, Samples, Unreadable

_FAILURES = (RuntimeError, ValueError, IndexError)
_NO_SAMPLE_IS_TO_BLAME = (MatchError, RegistrationError, RuleError, TraceError, UncoveredError)


@dataclass(frozen=True)
class Batches:
    """Explains groups of samples; the samples of a failed group one by one."""

    model: nn.Module
    samples: Samples
    inputs: Callable[[Any], Any] | None
    target: Any
    target_of: Callable[[Any], Any] | None
    keep: str
    options: dict[str, Any]

    def rows(self, group: list[Numbered], coverage: Coverage) -> list[Row]:
        """Return the rows of some samples, in order, and add up coverage."""
        readable = [(number, sample) for number, sample in group if not isinstance(sample, Unreadable)]
        rows = [failed_row(number, x.reason) for number, x in group if isinstance(x, Unreadable)]
        if readable:
            rows += self._together(readable, coverage)
        return sorted(rows, key=lambda row: row["sample"])

    def _together(self, group: list[Numbered], coverage: Coverage) -> list[Row]:
        try:
            found = self._explained(self._collated([sample for _, sample in group]))
        except _NO_SAMPLE_IS_TO_BLAME:
            raise
        except _FAILURES as error:
            if len(group) > 1:  # one of them fails: find out which
                return [row for one in group for row in self._together([one], coverage)]
            return [failed_row(group[0][0], f"{type(error).__name__}: {error}")]
        coverage.count(found.report, len(group))
        return rows_of(found, [number for number, _ in group], self.keep)

    def _collated(self, samples: list[Any]) -> Any:
        try:
            return self.samples.collate(samples)
        except _FAILURES as error:
            if len(samples) > 1:
                warnings.warn(
                    f"samples cannot be put into one batch, so each runs alone: {error}; pad them in collate=, or pass "
                    f"batch_size=1",
                    stacklevel=2,
                )
            raise

    def _explained(self, batch: Any) -> Attribution:
        if self.inputs is None and isinstance(batch, (list, tuple)):
            raise TypeError(
                f"a batch is a {type(batch).__name__} of {len(batch)}: say which of it the model is given, such as "
                f"inputs=lambda batch: batch[0]"
            )
        given = batch if self.inputs is None else self.inputs(batch)
        target = self.target if self.target_of is None else self.target_of(batch)
        place = next((x.device for x in self.model.parameters() if not x.is_meta), torch.device("cpu"))
        return attribute(self.model, map_tensors(lambda x: x.to(place), given), target=target, **self.options)
