"""The graph of the units that feed a unit: relevance that passes it, layer by layer below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.entry import attribute, read
from ..attribution.run import composite_of, statistics_kept
from ..composite import Composite
from ..errors import AttributionError
from .conditional import Condition
from .graph import EdgesRun
from .judge import check_single
from .measure import Measured, relevances
from .nodes import Node
from .unit_graph import GraphUnit, UnitGraph, graph_of
from .units import Units, find_units

OUTPUT = "output"
"""The node above all, if the graph is that of the explained number itself."""


def concept_graph(
    model: nn.Module,
    inputs: Any,
    unit: Any,
    layers: Any,
    *,
    target: Any = None,
    composite: str | Composite = "attnlrp",
    keep: int = 4,
    batch_size: int | None = None,
) -> UnitGraph:
    """Return the graph of how the relevance of a unit is composed of that of units below it, layer by layer.

    In each layer the k units are kept with most of the relevance that has passed the unit and those kept between.
    With ``R(v | u, K)`` for the relevance of v that has passed u and K, a mean over samples:

        edge from w to v = R(w | u, K, v),   value of v = R(v | u, K) = sum_v' R(v | u, ..., v') over the kept v' above

    What leaves a node sums to its value; so does what comes in, with ``others`` (not kept) and ``absorbed`` (biases).

    Args:
        model: any module.
        inputs: as for :func:`~lxt_compose.attribute`.
        unit: the unit above, such as ``"conv3[7]"``; None for the explained number itself.
        layers: the layers below, the nearest first: ``["conv2", "conv1"]``, each of one place.
        target: as for :func:`conditional`.
        composite: the same.
        keep: how many units of each layer become nodes.
        batch_size: how many rows, samples times nodes of a layer, to run at a time.

    Raises:
        ValueError: not one unit or place was given where one is needed, or ``keep`` is below 1.
        AttributionError: a place was not passed exactly once, or no relevance of the unit reaches a layer.

    Source: Achtibat et al. 2023 (CRP), section "Hierarchical composition of relevance" and figure 4.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise ValueError(f"keep must be a whole number from 1 on, got {keep!r}")
    below = [_one_place(model, layer) for layer in ([layers] if isinstance(layers, str) else layers)]
    ask = _Asking(model, inputs, target, composite, batch_size)
    nodes: list[GraphUnit] = []
    edges: list[tuple[str, str, float]] = []
    others, absorbed, passed = dict[str, float](), dict[str, float](), list[Units]()
    heads = [(root := None if unit is None else _one_unit(model, unit), ask.value(root))]
    for layer in below:
        nodes += [_node(head, value) for head, value in heads]
        numbers, found = ask.fed(passed, [head for head, _ in heads], layer)
        order = found.sum(0).abs().argsort(descending=True, stable=True)[:keep].tolist()
        chosen = [(_unit(layer, numbers[column]), column) for column in order if found[:, column].any()]
        if not chosen:
            raise AttributionError(_nothing([head for head, _ in heads], layer))
        for (head, value), flow in zip(heads, found, strict=True):
            kept = [(_name(node), _name(head), float(flow[column])) for node, column in chosen if flow[column]]
            edges += kept
            others[_name(head)] = float(flow.sum()) - sum(weight for _, _, weight in kept)
            absorbed[_name(head)] = value - float(flow.sum())
        passed += _alternatives([head for head, _ in heads if head is not None])
        heads = [(node, float(found[:, column].sum())) for node, column in chosen]
    return graph_of([*nodes, *(_node(head, value) for head, value in heads)], edges, others, absorbed)


def _nothing(heads: Sequence[Units | None], layer: Units) -> str:
    """Return the error for a layer at which no relevance arrives."""
    return (
        f"no relevance comes from {', '.join(map(_name, heads))} to {layer}: it has none for these inputs and this "
        f"target, or the layer is not below it; name the nearest layer first"
    )


@dataclass(frozen=True)
class _Asking:
    """The relevance of units, as means over samples, in one call of :func:`concept_graph`."""

    model: nn.Module
    inputs: Any
    target: Any
    composite: str | Composite
    batch_size: int | None

    def value(self, unit: Units | None) -> float:
        """Return the relevance of the unit above all, or the explained number."""
        how = {"target": self.target, "composite": self.composite}
        if unit is None:
            return float(attribute(self.model, self.inputs, **how).output.double().mean())
        return float(_all(relevances(self.model, self.inputs, unit, **how)[0])[1].sum())

    def fed(self, passed: Sequence[Units], heads: Sequence[Units | None], layer: Units) -> tuple[list[int], Tensor]:
        """Return the numbers of a layer's units, and the relevance of each by way of each head: [heads, units]."""
        conditions = [Condition(_name(head), (*passed, head)) for head in heads if head is not None]
        if not conditions:
            found = relevances(self.model, self.inputs, layer, target=self.target, composite=self.composite)
            return _all(found[0])
        with torch.inference_mode(False), torch.enable_grad(), statistics_kept(self.model):
            given, goals, _ = read(self.model, self.inputs, self.target, None, ())
            check_single(goals)
            rows = given.repeated(len(conditions))
            run = EdgesRun(self.model, composite_of(self.composite), rows, [], conditions, watched=[layer])
            run.all(given, goals, self.batch_size)
        numbers = [node.unit or 0 for node in run.nodes]
        return numbers, torch.cat(run.parts).unflatten(0, (given.count, len(conditions))).double().mean(0)


def _one_place(model: nn.Module, key: Any) -> Units:
    found = find_units(model, key)
    if len(found) > 1:
        raise ValueError(f"{key!r} names {len(found)} places; the layers of a graph are of one each")
    return found[0]


def _one_unit(model: nn.Module, key: Any) -> Units:
    found = _one_place(model, key)
    if found.index is None or len(found.index) != 1 or isinstance(found.index[0], slice):
        raise ValueError(f"a graph is of one unit, such as 'conv3[7]', or of None for the output; got {key!r}")
    return found


def _unit(layer: Units, number: int) -> Units:
    node = Node(layer.place, number)
    return Units(node.name, layer.place, (number,), layer.at)


def _alternatives(heads: Sequence[Units]) -> list[Units]:
    """Return units of one place as one entry, of which relevance may pass any."""
    if not heads:
        return []
    numbers = tuple(number for head in heads for number in head.index or ())
    return [replace(heads[0], text=", ".join(map(str, heads)), index=numbers)]


def _name(head: Units | None) -> str:
    return OUTPUT if head is None else str(head)


def _node(head: Units | None, value: float) -> GraphUnit:
    return GraphUnit(_name(head), OUTPUT if head is None else head.place.name, value)


def _all(measured: Measured) -> tuple[list[int], Tensor]:
    """Return the numbers of units, and the mean over samples of their relevance at all places: [1, units]."""
    values, counted = measured.flat
    return measured.numbers, values.double().masked_fill(~counted, 0).sum(2).mean(0)[None]
