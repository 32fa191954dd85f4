"""Exact patching: the explained number with nodes set to their corrupted values, many sets of nodes in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.entry import read
from ..attribution.failures import telling
from ..attribution.goals import Goals, choose_each
from ..attribution.inputs import Inputs
from ..errors import AttributionError
from ..torch_internals.traces import on_cpu
from .intervene import record
from .nodes import Node, nodes_of
from .passes import missing, select_rows
from .units import Layout, Place, find_units
from .visits import Visit, Visits


class Judge:
    """Runs a model on clean inputs with nodes set to their corrupted values, and reads the explained number.

    Args:
        model: any module.
        clean: the inputs.
        corrupted: other inputs of the same shapes.
        units: where nodes may be.
        target: the explained number.
    """

    def __init__(self, model: nn.Module, clean: Any, corrupted: Any, units: Any, target: Any) -> None:
        self.model, self.units = model, find_units(model, units)
        self.places = list(dict.fromkeys(each.place for each in self.units))
        self.given, self._goals, _ = read(model, clean, target, None, ())
        check_single(self._goals)
        self._values = record(model, corrupted, self.units)
        self.layouts: dict[Place, Layout] = {}
        self._rows: list[list[Node]] = []
        self._met: dict[Place, Visit] = {}
        self.clean, self._goals = self._measure(self.given, self._goals)
        other, _, _ = read(model, corrupted, target, None, ())
        self.corrupted = self._measure(other, self._goals)[0]

    def nodes(self, per: str) -> list[Node]:
        """Return the nodes.

        Raises:
            AttributionError: a place was not reached.
        """
        for place in self.places:
            if place not in self.layouts:
                raise AttributionError(missing(place))
        return [node for each in self.units for node in nodes_of(each, self.layouts[each.place], per)]

    def run(self, patched: Sequence[Sequence[Node]], batch_size: int) -> Tensor:
        """Return the explained number for each sample and each set of nodes that are patched: [samples, sets]."""
        step = max(1, batch_size // self.given.count)
        found = []
        for start in range(0, len(patched), step):
            self._rows = [list(nodes) for nodes in patched[start : start + step]]
            times = len(self._rows)
            samples = torch.arange(self.given.count).repeat_interleave(times)
            goals = Goals(tuple(goal.rows(samples) for goal in self._goals.each))
            found.append(self._measure(self.given.repeated(times), goals)[0].unflatten(0, (-1, times)))
            self._rows = []
        return torch.cat(found, 1)

    def _measure(self, given: Inputs, goals: Goals) -> tuple[Tensor, Goals]:
        """Return the explained number of each row, and the targets with the indices that were chosen."""
        with torch.no_grad(), Visits(self.model, self.places, self._look) as self._visits, telling(self.model, given):
            batch = given.copied()
            output = self.model(*batch.args, **batch.kwargs)
            self.layouts |= {place: self._visits.layout(visit) for place, visit in self._met.items()}
            self._met.clear()
        (chosen,) = choose_each(goals, output, self.model, given, times_output=False)
        (goal,) = goals.each
        if goal.function is None and goal.first is None and chosen.target is not None:
            first = chosen.target if chosen.target.dim() == 1 else chosen.target[:, 0]
            goals = Goals((type(goal)(first, goal.second, goal.others),))
        return on_cpu(chosen.value), goals

    def _look(self, visit: Visit) -> Tensor | None:
        x, place = visit.tensor, visit.place
        if place not in self.layouts:
            self._met[place] = visit
        if not any(node.place == place for nodes in self._rows for node in nodes):
            return None
        layout, rows = self._visits.layout(visit), len(self._rows)
        nothing = torch.zeros([1] * x.dim(), dtype=torch.bool, device=x.device)
        masks = []
        for nodes in self._rows:
            mask = nothing
            for node in nodes:
                if node.place == place:
                    mask = mask | node.units.mask(layout, x.device)
            masks.append(mask)
        mask = select_rows(masks, torch.arange(self.given.count * rows) % rows, layout)
        batch = layout.batch
        assert batch is not None
        mine = self._values[place.name][0].to(x)
        return torch.where(mask, mine.repeat_interleave(x.shape[batch] // mine.shape[batch], batch), x)


def check_single(goals: Goals) -> None:
    """Raise if there are several targets for each sample."""
    if len(goals) > 1 or goals.names:
        raise ValueError("circuits are of one target for each sample; find one for each target")
