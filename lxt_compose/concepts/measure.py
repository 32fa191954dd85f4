"""Relevance and activation of units, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.entry import read
from ..attribution.failures import telling
from ..attribution.inputs import Inputs, read_inputs
from ..attribution.run import composite_of, statistics_kept
from ..composite import Composite
from ..errors import AttributionError
from ..torch_internals.traces import on_cpu
from .passes import PlacesRun, missing
from .units import HEAD, Layout, Units, find_units
from .visits import Visit, Visits

ACTIVATION, RELEVANCE = "activation", "relevance"


class Measured:
    """Amounts of units in one batch: one number for each sample, unit and place.

    ``values`` are [samples, units, *places]; ``counted`` [samples or 1, 1, *places] is true at places that count, not
    at padding and places that were not asked for; ``numbers`` are those of the units.
    """

    def __init__(self, units: Units, values: Tensor, counted: Tensor, numbers: list[int]) -> None:
        self.units, self.values, self.counted, self.numbers = units, values, counted, numbers

    @property
    def flat(self) -> tuple[Tensor, Tensor]:
        """Values and the mask of counted places, with one dimension for all places: [samples, units, places]."""
        values = self.values.flatten(2) if self.values.dim() > 2 else self.values[..., None]
        counted = self.counted.expand(len(self.values), 1, *self.values.shape[2:])
        return values, counted.flatten(2) if counted.dim() > 2 else counted[..., None]


def _measured(units: Units, x: Tensor, layout: Layout, given: Inputs, *, activation: bool) -> Measured:
    """Return the numbers of some units of the tensor at their place."""
    numbers = units.numbers(layout)
    if activation and HEAD in layout.dims:  # the length of a vector
        values = layout.per_unit(x.square()).sqrt()
    else:
        values = layout.per_unit(x)
    places = _places_mask(units, layout, values.device)
    mask, shape = given.mask, values.shape[2:]
    if mask is not None and mask.dim() == 2 and shape == mask.shape[1:] and len(mask) == len(values):
        places = places & (mask != 0).to(places.device)[:, None]
    if len(values) != given.count:
        raise AttributionError(
            f"the tensor at {units.place.name}, of shape {list(x.shape)}, does not count the {given.count} samples in "
            f"its dimension of samples"
        )
    return Measured(units, on_cpu(values[:, numbers]), on_cpu(places), numbers)


def _places_mask(units: Units, layout: Layout, device: torch.device) -> Tensor:
    """Return which places were asked for: [1, 1, *places]."""
    mask = replace(units, index=None).mask(layout, device)
    whole = mask.expand([1 if d == layout.batch else size for d, size in enumerate(layout.shape)])
    return layout.per_unit(whole.to(torch.int8))[:1, :1] > 0


def activations(model: nn.Module, inputs: Any, units: Any) -> list[Measured]:
    """Return the activation of units in one batch, without any rules: one entry for each place.

    Args:
        model: any module.
        inputs: as for :func:`~lxt_compose.attribute`.
        units: see :func:`find_units`. That of a head is the length of its vector.

    Raises:
        AttributionError: a place was not reached, or ran several times and no call was named.
    """
    found, given = find_units(model, units), read_inputs(model, inputs)
    met: list[Visit] = []

    def keep(visit: Visit) -> None:
        visit.tensor = visit.tensor.clone()
        met.append(visit)

    with torch.no_grad(), Visits(model, [each.place for each in found], keep) as visits, telling(model, given):
        batch = given.copied()
        model(*batch.args, **batch.kwargs)
        return [_one(each, met, visits, given) for each in found]


def _one(units: Units, met: list[Visit], visits: Visits, given: Inputs) -> Measured:
    found = [visit for visit in met if visit.place == units.place]
    if len(found) != 1:
        times = f"{units.place.name} ran {len(found)} times: say which call is meant, {units.place.name}#1"
        raise AttributionError(times if found else missing(units.place))
    return _measured(units, found[0].tensor, visits.layout(found[0]), given, activation=True)


def relevances(
    model: nn.Module,
    inputs: Any,
    units: Any,
    *,
    target: Any = None,
    composite: str | Composite = "attnlrp",
) -> list[Measured]:
    """Return the relevance of units in one batch: one entry for each place.

    Args:
        model: any module.
        inputs: as for :func:`~lxt_compose.attribute`.
        units: see :func:`find_units`. That of a head is the sum over its features.
        target: what is explained, one target for each sample.
        composite: the name of a preset, or a composite.

    Raises:
        ValueError: there are several targets for each sample.
        AttributionError: a place was not reached, ran several times and no call was named, or has no relevance.
    """
    found = find_units(model, units)
    with torch.inference_mode(False), torch.enable_grad(), statistics_kept(model):
        given, goals, _ = read(model, inputs, target, None, ())
        if len(goals) > 1 or goals.names:
            raise ValueError("units are measured for one target for each sample; do it once for each target")
        run = SlotsRun(model, composite_of(composite), given, [], found, values=True)
        run.batches(goals, None, progress=False, ledger=False)
        measured = []
        for each in found:
            layout = run.layout(run.once(each.place))
            measured.append(_measured(each, run.relevance_at(each.place), layout, given, activation=False))
    return measured


class SlotsRun(PlacesRun):
    """One batch of an attribution that also keeps the slots of caught tensors, in ``arrived``."""

    def slots(
        self, outputs: Sequence[Tensor], seeds: Sequence[Tensor], leaves: Sequence[Tensor], *, keep: bool
    ) -> list[Tensor | None]:
        """Return the slots of the leaves, and keep those of the places."""
        return self.arrivals(outputs, seeds, leaves, self.places, keep=keep)
