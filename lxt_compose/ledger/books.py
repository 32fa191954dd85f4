"""The data of a ledger: amounts of relevance by operation and by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph_check import GraphCheck

UNSEEN = "unseen"


@dataclass(frozen=True, slots=True, eq=False)
class Amount:
    """An amount of relevance: that of each sample, and what cannot be attributed to samples."""

    by_sample: Tensor
    """float64, one value for each sample."""
    shared: float = 0.0

    @property
    def total(self) -> float:
        """Over all samples."""
        return float(self.by_sample.sum()) + self.shared

    @property
    def per_sample(self) -> Tensor:
        """One value for each sample; all NaN if a part cannot be attributed to samples."""
        return torch.full_like(self.by_sample, torch.nan) if self.shared else self.by_sample.clone()

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.by_sample + other.by_sample, self.shared + other.shared)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.by_sample - other.by_sample, self.shared - other.shared)


def nothing(samples: int) -> Amount:
    """Return no relevance at all."""
    return Amount(torch.zeros(samples, dtype=torch.float64))


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One kind of operation at one place, over all its calls.

    ``path`` is the dotted path of the innermost module that was running, ``status`` that of the coverage report, or
    "unseen" for operations that only the autograd graph shows, ``entered`` is the relevance that arrived at its
    outputs, ``left`` what it sent to its inputs, ``absorbed`` the difference by kind (see
    :data:`~lxt_compose.ledger.KINDS`); negative where relevance was created.
    """

    path: str
    name: str
    rule: str
    status: str
    calls: int
    entered: Amount
    left: Amount
    absorbed: Mapping[str, Amount]

    @property
    def lost(self) -> Amount:
        """The relevance that it absorbed, of any kind."""
        return self.entered - self.left


@dataclass(frozen=True, slots=True, eq=False)
class ModuleEntry:
    """One module, over all its calls: what arrived at its outputs, and what it and all in it absorbed."""

    path: str
    type: str
    calls: int
    entered: Amount
    absorbed: Amount

    @property
    def left(self) -> Amount:
        """What arrived less what was absorbed."""
        return self.entered - self.absorbed


@dataclass(frozen=True, eq=False)
class Books:
    """The data of a ledger."""

    seed: Amount
    inputs: Amount
    entries: tuple[Entry, ...]
    modules: tuple[ModuleEntry, ...]
    gaps: tuple[float, ...]
    check: GraphCheck
    notes: tuple[str, ...] = ()

    @property
    def unaccounted(self) -> float:
        """The largest ``|seed - inputs - absorbed|`` of a sample: 0 to rounding, or some operation was not seen."""
        return max(self.gaps, default=0.0)

    def share(self, amount: Amount) -> float:
        """Return an amount as a part of the seed; over several samples the mean, each weighted by the size of its seed.

        NaN where the seed is 0.
        """
        seed = self.seed
        if amount.shared or seed.shared:
            return amount.total / seed.total if seed.total else float("nan")
        size = float(seed.by_sample.abs().sum())
        return float((amount.by_sample * seed.by_sample.sign()).sum()) / size if size else float("nan")
