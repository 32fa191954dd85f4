"""Concept relevance propagation: relevance that passes through given units only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.axes import BATCH, place_of
from ..attribution.entry import read
from ..attribution.goals import Goals
from ..attribution.inputs import Inputs
from ..attribution.joining import joined
from ..attribution.result import Attribution
from ..attribution.run import composite_of, statistics_kept
from ..composite import Composite
from ..coverage.report import CoverageReport
from ..errors import AttributionError
from .passes import Caught, PlacesRun, select_rows
from .units import Place, Units, find_units


@dataclass(frozen=True)
class Condition:
    """A condition on relevance: at each place it must pass one of the units named there."""

    name: str
    units: tuple[Units, ...]

    @property
    def places(self) -> frozenset[Place]:
        """Where relevance is held back."""
        return frozenset(each.place for each in self.units)

    def at(self, place: Place) -> list[Units]:
        """Return the units that it names at a place."""
        return [each for each in self.units if each.place == place]


def read_conditions(model: nn.Module, conditions: Any) -> list[Condition]:
    """Return the conditions, each with its name.

    Args:
        model: the model.
        conditions: see :func:`conditional`.

    Raises:
        ValueError: there are none.
        MatchError: a name matches no module.
    """
    if isinstance(conditions, Mapping):
        return [Condition(str(name), tuple(find_units(model, keys))) for name, keys in conditions.items()]
    several = isinstance(conditions, Sequence) and not isinstance(conditions, (str, tuple))
    found = []
    for keys in conditions if several else [conditions]:
        units = tuple(find_units(model, keys))
        found.append(Condition(", ".join(map(str, units)), units))
    if not found:
        raise ValueError("no conditions were given; they are like ['conv2[3]', ('conv1[0]', 'conv2[3]')]")
    return found


def conditional(
    model: nn.Module,
    inputs: Any,
    conditions: Any,
    *,
    target: Any = None,
    dims: Any = None,
    composite: str | Composite = "attnlrp",
    layers: Any = (),
    only: bool = True,
    batch_size: int | None = None,
) -> Attribution:
    """Return the relevance that passes through given units only, for each sample and condition.

    Units of one place are alternatives, several places must all be passed. Conditions on the same places share one
    forward and backward pass, in which each sample stands once for each of them. Those of all units of a place add up
    to the relevance that passes through the place, since relevance is linear in what flows back.

    Args:
        model: as for :func:`~lxt_compose.attribute`.
        inputs: the same.
        conditions: one or a list of them, or a mapping from names to them. A condition is what :func:`find_units`
            takes; a tuple for units of several places: ``["conv2[3]", ("conv1[0:4]", "conv2[3]")]``.
        target: what is explained; one target for each sample, see :func:`~lxt_compose.attribute`.
        dims: the names of dimensions, also of places.
        composite: the name of a preset, or a composite.
        layers: modules whose relevance under the conditions is wanted too.
        only: whether relevance that goes around a place (by a skip connection) is left out. False keeps it, so that
            only what flows at the place itself is masked.
        batch_size: how many rows, of samples times conditions, to run at a time; None is all at once.

    Returns:
        The attribution, with a row for each sample and condition, those of a sample one after the other;
        ``target_names`` are the conditions.

    Raises:
        ValueError: there are several targets for each sample, or an input has no dimension that counts samples.
        MatchError: a name matches no module.
        IndexError: there is no such unit or place.
        AttributionError: a place was not reached, is inside of a module with a rule, or ran several times and no call
            was named (``only=True``).

    Source: Achtibat et al. 2023 (CRP), equations 3 to 5; ``only=True`` starts anew at the units, as one would by hand.
    """
    found = read_conditions(model, conditions)
    with torch.inference_mode(False), torch.enable_grad(), statistics_kept(model):
        given, goals, watched = read(model, inputs, target, dims, layers)
        if len(goals) > 1 or goals.names:
            raise ValueError("conditional() takes one target for each sample; call it once for each target")
        _check_batches(given, len(found))

        def run_of(numbers: list[int]) -> ConditionalRun:
            chosen = [found[number] for number in numbers]
            rows = given.repeated(len(chosen))
            return ConditionalRun(model, composite_of(composite), rows, watched, chosen, only=only)

        whole, report = _all_groups(found, run_of, given, goals, batch_size)
    several = len(found) > 1 or isinstance(conditions, (Mapping, list))
    return Attribution(**joined([whole], given, report, tuple(each.name for each in found) if several else ()))


def _all_groups(
    conditions: list[Condition],
    run_of: Callable[[list[int]], ConditionalRun],
    given: Inputs,
    goals: Goals,
    size: int | None,
) -> tuple[dict[str, Any], CoverageReport]:
    """Run the conditions, those on the same places together; return what was found for all rows, and a report."""
    groups: dict[frozenset[Place], list[int]] = {}
    for number, condition in enumerate(conditions):
        groups.setdefault(condition.places, []).append(number)
    runs = [run_of(numbers) for numbers in groups.values()]
    parts = [run.all(given, goals, size) for run in runs]
    order = [number for numbers in groups.values() for number in numbers]
    return _woven(parts, [len(numbers) for numbers in groups.values()], order, given), runs[-1].report


def _check_batches(given: Inputs, count: int) -> None:
    shared = [name for name, x in given.all.items() if given.batch_of(x) is None]
    if shared and count > 1:
        raise ValueError(
            f"the input {shared[0]} has no dimension that counts samples, so conditions cannot share one pass: give it "
            f"one, or call conditional() once for each condition"
        )


class ConditionalRun(PlacesRun):
    """Batches in which each sample stands once for each of several conditions on the same places.

    Args:
        model: the model.
        composite: the rules.
        given: the inputs, each sample once for each condition.
        layers: modules whose relevance is recorded too.
        conditions: the conditions.
        only: whether relevance around the places is left out.
        watched: units at whose places the slots are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        given: Inputs,
        layers: Any,
        conditions: list[Condition],
        *,
        only: bool = True,
        watched: Sequence[Units] = (),
    ) -> None:
        named = [units for each in conditions for units in each.units]
        super().__init__(model, composite, given, layers, [*named, *watched], values=bool(watched))
        self.conditions, self._only = conditions, only
        self.held = list(dict.fromkeys(each.place for each in named))
        """Where relevance is held back."""
        self.watched = {each.place for each in watched}

    def all(self, given: Inputs, goals: Goals, size: int | None) -> dict[str, Any]:
        """Return what was found for all rows, as one part of an attribution.

        Args:
            given: the inputs, each sample once.
            goals: the target of each sample.
            size: how many rows to run at a time.
        """
        samples = torch.arange(given.count).repeat_interleave(len(self.conditions))
        rows = replace(goals, each=tuple(goal.rows(samples) for goal in goals.each))
        parts = self.batches(rows, size, progress=False, ledger=False)
        whole = joined(parts, self.given, self.report)
        relevance = whole["relevance"]
        main = relevance if isinstance(relevance, dict) else {next(iter(whole["inputs"])): relevance}
        kept = {name: whole[name] for name in ("output", "target", "latent")}
        return {**kept, "relevance": {**main, **whole["beside"]}, "dims": parts[0]["dims"]}

    def caught_now(self, caught: Caught, x: Tensor) -> None:
        """Mask the slot of the tensor, if relevance around it is kept."""
        if not self._only and x.requires_grad and caught.visit.place in self.held:
            x.register_hook(lambda slot: slot.masked_fill(~self._mask(caught, slot), 0))

    def _mask(self, caught: Caught, slot: Tensor) -> Tensor:
        layout, place = self.layout(caught), caught.visit.place
        masks = []
        for condition in self.conditions:
            found = [each.mask(layout, slot.device) for each in condition.at(place)]
            masks.append(torch.stack(torch.broadcast_tensors(*found)).any(0))
        return select_rows(masks, torch.arange(self.start, self.end) % len(self.conditions), layout)

    def slots(
        self, outputs: Sequence[Tensor], seeds: Sequence[Tensor], leaves: Sequence[Tensor], *, keep: bool
    ) -> list[Tensor | None]:
        """Return the slots of the leaves for relevance that passes the units, by one place after the other."""
        if not self._only:
            for place in self.held:
                self.at(place)
            return super().slots(outputs, seeds, leaves, keep=keep)
        self.arrived = {}
        met = sorted((self.once(place) for place in self.held), key=self.caught.index, reverse=True)
        for caught in met:
            if caught.edge is None:
                return [None] * len(leaves)  # a constant, which no relevance passes
            (slot,) = torch.autograd.grad(outputs, [caught.edge], seeds, allow_unused=True, retain_graph=True)
            if slot is None:
                self._note(caught)
                return [torch.zeros_like(leaf) for leaf in leaves]
            outputs, seeds = [caught.edge], [slot.masked_fill(~self._mask(caught, slot), 0)]  # type: ignore[list-item]
        return self.arrivals(outputs, seeds, leaves, self.watched, keep=keep)

    def _note(self, caught: Caught) -> None:
        note = f"no relevance passes {caught.visit.place.name} on its way from the output, or from the place above it"
        self.registration.session.tally.remarks[note] = None


def _woven(parts: list[dict[str, Any]], counts: list[int], order: list[int], given: Inputs) -> dict[str, Any]:
    """Return the rows of all groups of conditions as one part, in the order of the conditions.

    Args:
        parts: what each group found, rows of all samples times its conditions.
        counts: how many conditions each group has.
        order: the numbers of the conditions, group by group.
        given: the inputs, each sample once.

    Raises:
        AttributionError: a layer's relevance does not count the rows.
    """
    if len(parts) == 1:
        return parts[0]
    places, n = torch.tensor(order).argsort(), given.count

    def together(pieces: list[Tensor], batch: int | None) -> Tensor:
        if batch is None or any(p.shape[batch] % (n * k) for p, k in zip(pieces, counts, strict=True)):
            raise AttributionError("the relevance of a layer does not count the rows; ask for other layers=")
        apart = [p.unflatten(batch, (n, k, -1)) for p, k in zip(pieces, counts, strict=True)]
        return torch.cat(apart, batch + 1).index_select(batch + 1, places).flatten(batch, batch + 2)

    first = parts[0]
    dims = first["dims"]
    return {
        "dims": dims,
        "output": together([part["output"] for part in parts], 0),
        "target": None if first["target"] is None else together([part["target"] for part in parts], 0),
        "relevance": {
            name: together([part["relevance"][name] for part in parts], given.batch_of(given.all[name]))
            for name in first["relevance"]
        },
        "latent": {
            name: together([part["latent"][name] for part in parts], place_of(dims[name], BATCH))
            for name in first["latent"]
        },
    }
