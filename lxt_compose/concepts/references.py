"""Reference samples of a unit: those of a data set where it is most relevant (RelMax) or most active (ActMax)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn

from ..attribution.inputs import read_inputs
from ..composite import Composite
from .measure import ACTIVATION, RELEVANCE, Measured, activations, relevances
from .units import Units, find_units

_FORMAT, _VERSION = "lxt_compose references", 1


class Reference(NamedTuple):
    """A sample by its number in the data set, the unit's value there, and the place of its largest value."""

    sample: int
    value: float
    place: tuple[int, ...]


@dataclass(eq=False)
class Top:
    """The best samples of some units: ``values`` and ``samples`` [k, units], ``places`` [k, units, dimensions]."""

    numbers: list[int]
    values: Tensor
    samples: Tensor
    places: Tensor
    total: Tensor
    """The sum over all samples, [units]."""

    def update(self, measured: Measured, first: int, *, by: str) -> None:
        """Add a batch whose first sample has this number."""
        values, counted = measured.flat
        peak, where = values.masked_fill(~counted, -torch.inf).max(2)
        score = values.masked_fill(~counted, 0).sum(2) if by == RELEVANCE else peak
        shape = measured.values.shape[2:]
        place = torch.stack(torch.unravel_index(where, shape), -1) if shape else where.new_zeros((*where.shape, 0))
        sample = (first + torch.arange(len(score)))[:, None].expand_as(score)
        self.total += score.double().sum(0)
        # Stable, so that the first of equal samples stay, whatever the batches.
        both = torch.cat([self.values, score.to(self.values)])
        order = both.sort(dim=0, descending=True, stable=True).indices[: len(self.values)]
        self.values = both.gather(0, order)
        self.samples = torch.cat([self.samples, sample]).gather(0, order)
        index = order[..., None].expand(-1, -1, self.places.shape[2])
        self.places = torch.cat([self.places, place]).gather(0, index)


@dataclass(eq=False)
class References:
    """Reference samples of units, made by :func:`find_references`; all tensors are on the CPU.

    ``by`` is ``"relevance"`` or ``"activation"``, ``k`` how many samples are kept for each unit, ``count`` how many
    were seen. ``tops`` holds the samples by the names of the units.
    """

    by: str
    k: int
    count: int = 0
    tops: dict[str, Top] = field(default_factory=dict)

    def of(self, units: str, number: int) -> list[Reference]:
        """Return the reference samples of one unit, best first.

        Args:
            units: one of the names in ``tops``.
            number: the number of the unit.

        Raises:
            KeyError: the name is not in ``tops``.
        """
        if units not in self.tops:
            raise KeyError(f"no references of {units!r} were collected; there are {', '.join(self.tops)}")
        top = self.tops[units]
        if number not in top.numbers:
            raise KeyError(f"unit {number} is none of {units!r}")
        at = top.numbers.index(number)
        found = zip(top.samples[:, at].tolist(), top.values[:, at].tolist(), top.places[:, at].tolist(), strict=True)
        return [Reference(sample, value, tuple(place)) for sample, value, place in found if sample >= 0]

    def mean(self, units: str) -> Tensor:
        """Return the mean over all samples for each unit: [units]."""
        return self.tops[units].total / max(self.count, 1)

    def update(self, measured: Iterable[Measured], count: int) -> None:
        """Add a batch of `count` samples."""
        for each in measured:
            name, values = str(each.units), each.values
            if name not in self.tops:
                units, dims = values.shape[1], values.dim() - 2
                self.tops[name] = Top(
                    each.numbers,
                    torch.full((self.k, units), -torch.inf, dtype=torch.promote_types(values.dtype, torch.float32)),
                    torch.full((self.k, units), -1),
                    torch.zeros((self.k, units, dims), dtype=torch.long),
                    torch.zeros(units, dtype=torch.double),
                )
            self.tops[name].update(each, self.count, by=self.by)
        self.count += count

    def save(self, path: str | Path) -> None:
        """Write everything to one file that :meth:`load` reads; an older file stays until the new one is complete.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        from ..heatmap.picture import writable

        path = writable(path)
        content = {"format": _FORMAT, "version": _VERSION, "by": self.by, "k": self.k, "count": self.count}
        content["tops"] = {name: dict(vars(top)) for name, top in self.tops.items()}
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(handle)
        try:
            torch.save(content, name)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise

    @staticmethod
    def load(path: str | Path) -> References:
        """Read what :meth:`save` wrote; no code in the file is run.

        Raises:
            ValueError: it is no such file.
        """
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("format") != _FORMAT or content["version"] > _VERSION:
            raise ValueError(f"{path} is no file that References.save() wrote")
        tops = {name: Top(**top) for name, top in content["tops"].items()}
        return References(content["by"], content["k"], content["count"], tops)

    def table(self, most: int = 10) -> list[dict[str, Any]]:
        """Return a table of the units with the largest means: rows with unit, mean and the best samples.

        Args:
            most: how many rows.
        """
        found = [
            (mean, name, number)
            for name, top in self.tops.items()
            for number, mean in zip(top.numbers, self.mean(name).tolist(), strict=True)
        ]
        order = sorted(range(len(found)), key=lambda place: -found[place][0])[:most]
        return [
            {"units": name, "number": number, "mean": mean, "best": self.of(name, number)}
            for mean, name, number in (found[place] for place in order)
        ]

    def _repr_html_(self) -> str:
        rows = [
            [
                row["units"],
                row["number"],
                f"{row['mean']:.4g}",
                ", ".join(f"{r.sample} ({r.value:.3g})" for r in row["best"][:5]),
            ]
            for row in self.table()
        ]
        shown = tabulate(
            rows, ["units", "unit", "mean", "best samples (value)"], tablefmt="html", disable_numparse=True
        )
        return f"<div><p>{escape(repr(self)[1:-1])}</p>{shown}</div>"

    def __repr__(self) -> str:
        units = sum(len(top.numbers) for top in self.tops.values())
        return f"<References by {self.by}: the best {self.k} of {self.count} samples for {units} units>"


def find_references(
    model: nn.Module,
    batches: Iterable[Any],
    units: Any,
    *,
    k: int = 16,
    by: str = RELEVANCE,
    target: Any = None,
    composite: str | Composite = "attnlrp",
    path: str | Path | None = None,
    every: int = 20,
) -> References:
    """Stream a data set once, and keep for each unit the samples where it was most relevant or most active.

    Memory does not grow with the data set. Relevance of a unit is summed over places, activation is the largest of all
    places; padding does not count. Results do not depend on the batches.

    Args:
        model: any module.
        batches: what :func:`~lxt_compose.attribute` takes, one batch after the other, always in the same order.
        units: see :func:`find_units`.
        k: how many samples are kept for each unit.
        by: ``"relevance"`` (RelMax) or ``"activation"`` (ActMax).
        target: what is explained of each sample: None, one class for all, or a function of the output.
        composite: the name of a preset, or a composite.
        path: a file that everything is written to, every few batches and at the end. If it exists, its samples are
            skipped, so an interrupted run continues.
        every: how many batches to run between two writes.

    Returns:
        The `References`.

    Raises:
        ValueError: ``by`` or ``k`` is wrong; or the file is of other units, or does not end between two batches.

    Source: Achtibat et al. 2023, section "Selecting reference examples", with sum and maximum as they aggregate.
    """
    if by not in (ACTIVATION, RELEVANCE):
        raise ValueError(f"references are found by 'relevance' or 'activation', got by={by!r}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number from 1 on, got {k!r}")
    found = find_units(model, units)
    kept = _begun(path, by, k, found)
    for number, (batch, count) in enumerate(_to_come(model, batches, kept.count), 1):
        if by == ACTIVATION:
            measured = activations(model, batch, found)
        else:
            measured = relevances(model, batch, found, target=target, composite=composite)
        kept.update(measured, count)
        if path is not None and number % every == 0:
            kept.save(path)
    if path is not None:
        kept.save(path)
    return kept


def _to_come(model: nn.Module, batches: Iterable[Any], done: int) -> Iterator[tuple[Any, int]]:
    """Yield the batches after the samples seen so far, and the number of samples of each."""
    seen = 0
    for batch in batches:
        count = read_inputs(model, batch).count
        seen += count
        if seen <= done:
            continue
        if seen - count < done:
            raise ValueError(f"the file ends after {done} samples, in the middle of a batch: use the same batches")
        yield batch, count


def _begun(path: str | Path | None, by: str, k: int, units: list[Units]) -> References:
    """Return what is in the file so far."""
    if path is None or not Path(path).exists():
        return References(by, k)
    kept, names = References.load(path), [str(each) for each in units]
    if (kept.by, kept.k) != (by, k) or (kept.tops and list(kept.tops) != names):
        raise ValueError(
            f"{path} holds the best {kept.k} by {kept.by} of {', '.join(kept.tops)}, not the best {k} by {by} of "
            f"{', '.join(names)}; delete it, or choose another file"
        )
    return kept
