"""Structured pruning: scores of whole units (filters, neurons, heads), and holding units at 0."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..composite import Composite
from .intervene import Intervention, ablate
from .measure import Measured, activations, relevances
from .notebooks import html_of
from .pruning import least
from .units import Units, find_units
from .weights import AGGREGATES

SCORES = ("relevance", "activation", "magnitude", "random")
_WITHOUT_SAMPLES = ("magnitude", "random")


@dataclass(frozen=True, eq=False)
class UnitScores:
    """A score for each unit: ``values[i]`` are those of the units ``numbers[i]`` of ``units[i]``."""

    units: tuple[Units, ...]
    numbers: tuple[list[int], ...]
    values: tuple[Tensor, ...]

    @property
    def named(self) -> dict[str, float]:
        """Each unit's score by its name."""
        return {
            f"{each.place.name}[{number}]": value
            for each, numbers, values in zip(self.units, self.numbers, self.values, strict=True)
            for number, value in zip(numbers, values.tolist(), strict=True)
        }

    def __repr__(self) -> str:
        return f"<UnitScores of {sum(map(len, self.numbers))} units of {', '.join(map(str, self.units))}>"

    def heatmap(self) -> Any:
        """Return a picture: bars of the largest scores."""
        from ..heatmap import bars

        return bars(list(self.named), list(self.named.values()), titles="scores of units")

    def _repr_html_(self) -> str:
        return html_of(self, self.heatmap)


def unit_scores(
    model: nn.Module,
    batches: Iterable[Any],
    units: Any,
    *,
    by: str = "relevance",
    target: Any = None,
    composite: str | Composite = "attnlrp",
    aggregate: str = "absolute",
    seed: int = 0,
) -> UnitScores:
    """Return a score for each unit; the least is pruned first.

    A sample's value for a unit is the unit's relevance, or absolute activation, summed over places.

    Args:
        model: any module.
        batches: reference samples, as for :func:`~lxt_compose.attribute`.
        units: see :func:`find_units`: filters ``"conv2"``, neurons ``"*.mlp.act"``, heads ``"*.attn:heads"``.
        by: "relevance"; "activation"; "magnitude", the length of a unit's row of weights, for units that a layer puts
            out; or "random".
        target: what is explained, for "relevance".
        composite: the rules, for "relevance".
        aggregate: over samples' values r: "sum" is ``|sum r|``, "absolute" ``sum |r|``, "norm" ``sqrt(sum r^2)``.
        seed: of "random".

    Raises:
        ValueError: ``by`` or ``aggregate`` is unknown, there are no batches, or a unit has no row of weights.

    Source: Yeom et al. 2021, section 3.2 (sums, filters); Hatefi et al. 2024 (absolute values, heads and neurons);
    Voita et al. 2019, section 4 (heads); magnitude: Li et al. 2017.
    """
    if by not in SCORES or aggregate not in AGGREGATES:
        raise ValueError(
            f"units are scored by {', '.join(SCORES)}, put together by {', '.join(AGGREGATES)}; got by={by!r}, "
            f"aggregate={aggregate!r}"
        )
    found = find_units(model, units)
    totals: list[Tensor] = []
    numbers: list[list[int]] = []
    for batch in batches:
        how = {"target": target, "composite": composite}
        is_relevance = by == "relevance"
        measured = relevances(model, batch, found, **how) if is_relevance else activations(model, batch, found)
        parts = [_of_samples(each, aggregate, size=not is_relevance) for each in measured]
        totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
        numbers = [each.numbers for each in measured]
        if by in _WITHOUT_SAMPLES:  # the batch only gives the number of units
            break
    if not totals:
        raise ValueError("there were no batches")
    if by == "magnitude":
        totals = [_magnitude(each, mine) for each, mine in zip(found, numbers, strict=True)]
    elif by == "random":
        generator = torch.Generator().manual_seed(seed)
        totals = [torch.rand(len(total), generator=generator) for total in totals]
    else:
        totals = [total.sqrt() if aggregate == "norm" else total.abs() for total in totals]
    return UnitScores(tuple(found), tuple(numbers), tuple(totals))


def prune_units(model: nn.Module, scores: UnitScores, sparsity: float, *, within: str = "model") -> Intervention:
    """Hold the units with the least scores at 0, from now until :meth:`Intervention.remove`.

    Args:
        model: any module.
        scores: see :func:`unit_scores`.
        sparsity: the share of the scored units that is held at 0, from 0 to 1.
        within: the units that are compared: all of the "model", or those of each "place". Relevance is conserved from
            layer to layer, so it can be compared across layers.

    Raises:
        ValueError: the sparsity is out of range, or ``within`` is unknown.

    Source: Yeom et al. 2021, section 3.2: no normalization per layer.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is a share from 0 to 1, got {sparsity!r}")
    if within == "model":
        flat = least(torch.cat([value.double() for value in scores.values])[None], sparsity)[0]
        masks = flat.split([len(value) for value in scores.values])
    elif within == "place":
        masks = tuple(least(value[None], sparsity)[0] for value in scores.values)
    else:
        raise ValueError(f"units compete within the 'model' or a 'place', got within={within!r}")
    pruned = []
    for each, numbers, mask in zip(scores.units, scores.numbers, masks, strict=True):
        gone = tuple(number for number, is_pruned in zip(numbers, mask.tolist(), strict=True) if is_pruned)
        pruned.append(Units(f"{each.place.name} ({len(gone)} of {len(numbers)} units)", each.place, gone, each.at))
    return ablate(model, pruned)


def _of_samples(measured: Measured, aggregate: str, *, size: bool) -> Tensor:
    """Return the contribution of a batch to the score of each unit, [units]."""
    values, counted = measured.flat
    values = values.masked_fill(~counted, 0).double()
    each = (values.abs() if size else values).sum(2)
    return AGGREGATES[aggregate](each).sum(0)


def _magnitude(units: Units, numbers: list[int]) -> Tensor:
    weight = getattr(units.place.module, "weight", None)
    if units.place.side or not isinstance(weight, Tensor) or weight.dim() < 2 or len(weight) <= max(numbers):
        raise ValueError(
            f"{units} have no magnitude: they are not what a layer with a row of weights for each of them puts out"
        )
    return weight.detach().cpu()[numbers].flatten(1).norm(dim=1)
