"""The data of an attribution: tensors by name, the names of their dimensions, and the scores that they add up to."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..coverage.report import CoverageReport
from ..ledger import Ledger
from .axes import BATCH, UNKNOWN, Dims, before_they_were_kept, check_known, summed


def shown_target(target: int | list[int]) -> str:
    """Return the name of a target: a contrast is a difference, by -1 to the mean of all others."""
    if not isinstance(target, list):
        return str(target)
    return " - ".join("others" if index == -1 else str(index) for index in target)


@dataclass(frozen=True, eq=False)
class AttributionData:
    """The fields of :class:`Attribution`, which views and files read."""

    relevance: Tensor | dict[str, Tensor]
    output: Tensor
    target: Tensor | None
    report: CoverageReport
    latent: dict[str, Tensor] = field(default_factory=dict)
    ledger: Ledger | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    dims: dict[str, Dims] = field(default_factory=dict)
    beside: dict[str, Tensor] = field(default_factory=dict)
    target_names: tuple[str, ...] = ()
    ran: str = "eager"

    def __len__(self) -> int:
        return len(self.output)

    def title_of(self, row: int) -> str:
        """Return the title of a row: its sample and its target, the latter by name if there are several."""
        if not self.target_names:
            return f"sample {row}" + (
                "" if self.target is None else f", target {shown_target(self.target[row].tolist())}"
            )
        sample, target = divmod(row, len(self.target_names))
        name = self.target_names[target]
        return name if len(self) == len(self.target_names) else f"sample {sample}, {name}"

    @property
    def relevances(self) -> dict[str, Tensor]:
        """The relevance by the names of the inputs, even of a single one, and of those ``beside``."""
        return {**self._main, **self.beside}

    @property
    def _main(self) -> dict[str, Tensor]:
        """The relevance by the names of the inputs, without those beside."""
        if isinstance(self.relevance, dict):
            return self.relevance
        return {next(iter(self.inputs), "input"): self.relevance}

    @property
    def scores(self) -> Tensor | dict[str, Tensor]:
        """Relevance summed over channels and features: one number per token [n, tokens], pixel [n, height, width], ...

        The samples come first; a table [n, features] has one score for each of its features.

        Raises:
            ValueError: it is not known what the dimensions are; ``attribute(..., dims=)`` names them.
        """
        scores = {name: self._scores(name) for name in self._main}
        return scores if isinstance(self.relevance, dict) else next(iter(scores.values()))

    def dims_of(self, name: str) -> Dims:
        """Return the names of the dimensions of the relevance of an input or a layer."""
        found = {**self.latent, **self.relevances}[name]
        return self.dims.get(name) or before_they_were_kept(found.dim())

    def _scores(self, name: str) -> Tensor:
        """Return the scores of one input or layer."""
        relevance = self.relevances[name] if name in self.relevances else self.latent[name]
        return summed(relevance, self.dims_of(name), name)

    def real(self, sample: int = 0, *, input: str | None = None) -> Tensor:
        """Return which positions of a sample are no padding: [tokens], true or false.

        Args:
            sample: which sample.
            input: the name of an input, if several are sequences; by default the first that has tokens.

        Raises:
            IndexError: there is no such sample.
            ValueError: the input is no sequence.
        """
        name, sample = self._sequences("real()", input)[0], self._place(sample)
        count, mask = self._per_sample(name).shape[1], self.mask
        of_other = name.startswith("decoder_") and not next(iter(self.relevances)).startswith("decoder_")
        if mask is None or mask.dim() != 2 or mask.shape[1] != count or of_other:
            return torch.ones(count, dtype=torch.bool)
        return mask[sample] != 0

    def _place(self, sample: int) -> int:
        """Return the number of a sample from 0 on; negative ones count from the end."""
        n = len(self)
        if isinstance(sample, bool) or not hasattr(sample, "__index__"):
            raise TypeError(f"sample must be a whole number, got {sample!r}")
        place = operator.index(sample)
        if not -n <= place < n:
            raise IndexError(f"there is no sample {place}: there are {n}, from 0 to {n - 1}")
        return place % n

    def _sequences(self, what: str, name: str | None = None) -> list[str]:
        """Return the names of the inputs that have one score for each place of a sequence, those with tokens first."""
        self._check_input(name)
        names = list(self.relevances) if name is None else [name]
        unknown = [name for name in names if UNKNOWN in self.dims_of(name)]
        found = [name for name in names if name not in unknown and self._per_sample(name).dim() == 2]
        if found:
            return sorted(found, key=lambda name: "token" not in self.dims_of(name))
        first = names[0]
        check_known(first, self.dims_of(first), self.relevances[first].shape)
        raise ValueError(f"{what} is for sequences, but {first} has the shape {list(self.relevances[first].shape)}")

    def _check_input(self, name: str | None) -> None:
        if name is not None and name not in self.relevances:
            raise KeyError(f"there is no input {name!r}; inputs: {', '.join(self.relevances)}")

    def _per_sample(self, name: str) -> Tensor:
        """Return the scores of an input or layer, with a dimension of samples even for a single one."""
        return self._scores(name) if BATCH in self.dims_of(name) else self._scores(name)[None]
