"""Edges between units: the relevance that passes an upper unit and then a lower one; graphs of nodes and edges."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.entry import read
from ..attribution.goals import Goals
from ..attribution.inputs import Inputs
from ..attribution.run import composite_of, statistics_kept
from ..composite import Composite
from ..torch_internals.traces import on_cpu
from .conditional import Condition, ConditionalRun
from .judge import check_single
from .measure import relevances
from .nodes import Effects, Node
from .notebooks import html_of
from .unit_graph import GraphUnit, UnitGraph, graph_of
from .units import Units, find_units


@dataclass(frozen=True, eq=False)
class Edges:
    """Relevance that comes from upper nodes to lower ones: ``values`` [samples, upper, lower]."""

    upper: tuple[Node, ...]
    lower: tuple[Node, ...]
    values: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over samples, [upper, lower]."""
        return self.values.mean(0)

    def __repr__(self) -> str:
        return f"<Edges of {len(self.values)} samples: {len(self.upper)} nodes above, {len(self.lower)} below>"

    def _repr_html_(self) -> str:
        return html_of(self, circuit_graph(None, [self]).heatmap)


def edges(
    model: nn.Module,
    inputs: Any,
    upper: Any,
    lower: Any,
    *,
    target: Any = None,
    composite: str | Composite = "attnlrp",
    batch_size: int | None = None,
) -> Edges:
    """Return how the relevance of each upper unit is composed of that of units below it.

    The edge from u to v is the relevance of u that has passed v, by all ways between the two. If u are all units of a
    layer that nothing goes around, the edges to v sum to the relevance of v, less what biases and rules absorb between.

    Args:
        model: any module.
        inputs: as for :func:`~lxt_compose.attribute`.
        upper: units, see :func:`find_units`; each is a condition of its own.
        lower: units below them.
        target: what is explained, one target for each sample.
        composite: the name of a preset, or a composite.
        batch_size: how many rows, of samples times upper units of a place, to run at a time.

    Raises:
        ValueError: there are several targets for each sample.
        AttributionError: a place was not reached, or ran several times and no call was named.

    Source: Achtibat et al. 2023 (CRP), section "Hierarchical composition of relevance".
    """
    below, found, above, rows = find_units(model, lower), [], [], []
    for each in relevances(model, inputs, upper, target=target, composite=composite):
        place = each.units.place
        above = [Node(place, number, None) for number in each.numbers]
        rows += above
        conditions = [
            Condition(node.name, (Units(node.name, place, (node.unit or 0,), each.units.at),)) for node in above
        ]
        with torch.inference_mode(False), torch.enable_grad(), statistics_kept(model):
            given, goals, _ = read(model, inputs, target, None, ())
            check_single(goals)
            repeated = given.repeated(len(conditions))
            run = EdgesRun(model, composite_of(composite), repeated, [], conditions, watched=below)
            run.all(given, goals, batch_size)
        found.append(torch.cat(run.parts).unflatten(0, (given.count, len(conditions))))
    return Edges(tuple(rows), tuple(run.nodes), torch.cat(found, 1))


class EdgesRun(ConditionalRun):
    """Batches of conditions that keep the relevance of the units below: ``parts`` [rows, units]."""

    def __init__(self, *args: Any, watched: list[Units]) -> None:
        super().__init__(*args, watched=watched)
        self.parts: list[Tensor] = []
        self.nodes: list[Node] = []
        self._below = watched

    def one(self, batch: Inputs, goals: Goals) -> list[dict[str, Any]]:
        """See :meth:`Run.one`."""
        found, self.nodes, columns = super().one(batch, goals), [], []
        for each in self._below:
            caught = self.once(each.place)
            layout, numbers = self.layout(caught), each.numbers(self.layout(caught))
            relevance = self.relevance_at(each.place) if self.arrived else torch.zeros_like(caught.visit.tensor)
            kept = layout.per_unit(relevance.masked_fill(~each.mask(layout, relevance.device), 0))[:, numbers]
            columns.append(on_cpu(kept.flatten(2).sum(2) if kept.dim() > 2 else kept))
            self.nodes += [Node(each.place, number) for number in numbers]
        self.parts.append(torch.cat(columns, 1))
        return found


def circuit_graph(effects: Effects | None, found: Iterable[Edges] = (), *, least: float = 0.0) -> UnitGraph:
    """Return nodes and edges as a graph, which is drawn, and written as GraphML or for networkx.

    Values of nodes are their effects, edges go from the lower node to the upper one: means over samples.

    Args:
        effects: of the nodes, or None.
        found: edges.
        least: leave out edges (and nodes without any) that are smaller than this.
    """
    nodes: list[GraphUnit] = []
    edges: list[tuple[str, str, float]] = []
    values: dict[str, float] = {}
    if effects is not None:
        values = dict(zip((node.name for node in effects.nodes), effects.mean.tolist(), strict=True))
        nodes += [
            GraphUnit(n.name, n.place.name, values[n.name]) for n in effects.nodes if abs(values[n.name]) >= least
        ]
    for each in found:
        for upper, weights in zip(each.upper, each.mean.tolist(), strict=True):
            for lower, weight in zip(each.lower, weights, strict=True):
                if abs(weight) >= least and weight:
                    edges.append((lower.name, upper.name, weight))
                    nodes += [GraphUnit(n.name, n.place.name, values.get(n.name, 0.0)) for n in (lower, upper)]
    return graph_of(nodes, edges)
