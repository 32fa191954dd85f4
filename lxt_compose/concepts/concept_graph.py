"""The graph of what feeds a unit: relevance that passes it, layer by layer below, by way of the units that matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
    """Return how the relevance of a unit is composed of that of units below it, layer by layer.

    In each layer the k units are kept that have most of the relevance that has passed the unit and those kept in all
    layers between. With ``R(v | u, K)`` for the relevance of v that has passed u and K, all as means over samples:

        edge from w to v = R(w | u, K, v),   value of v = R(v | u, K) = sum_v' R(v | u, ..., v') over the kept v' above

    So what leaves a node sums to its value, and what comes in does with ``others`` (units that were not kept) and
    ``absorbed`` (biases, rules, ways around the layer).

    Args:
        model: any module.
        inputs: as for :func:`~lxt_compose.attribute`; values are means over the samples.
        unit: the unit above, such as ``"conv3[7]"``, see :func:`find_units`; None for the explained number itself.
        layers: the layers below, the nearest first: ``["conv2", "conv1"]``, each of one place.
        target: what is explained, one target for each sample.
        composite: the name of a preset, or a composite.
        keep: how many units of each layer become nodes.
        batch_size: how many rows, of samples times nodes of a layer, to run at a time.

    Returns:
        A :class:`UnitGraph`.

    Raises:
        ValueError: several units or places were given where one is needed, ``keep`` is below 1, or there are several
            targets for each sample.
        AttributionError: a place was not met, or ran several times and no call was named; or nothing of the unit's
            relevance comes to a layer.

    Source: Achtibat et al. 2023 (CRP), section "Hierarchical composition of relevance" and figure 4.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise ValueError(f"keep must be a whole number from 1 on, got {keep!r}")
    below = [_one_place(model, layer) for layer in ([layers] if isinstance(layers, str) else layers)]
    nodes: list[GraphUnit] = []
    edges: list[tuple[str, str, float]] = []
    others: dict[str, float] = {}
    absorbed: dict[str, float] = {}
    passed: list[Units] = []
    heads = [(None if unit is None else _one_unit(model, unit), _value(model, inputs, unit, target, composite))]
    for layer in below:
        nodes += [_node(head, value) for head, value in heads]
        conditions = [Condition(_name(head), (*passed, head)) for head, _ in heads if head is not None]
        if conditions:
            numbers, found = _fed(model, inputs, conditions, layer, target, composite, batch_size)
        else:
            numbers, found = _all(relevances(model, inputs, layer, target=target, composite=composite)[0])
        order = found.sum(0).abs().argsort(descending=True, stable=True)[:keep].tolist()
        chosen = [(_unit(layer, numbers[column]), column) for column in order if found[:, column].any()]
        if not chosen:
            names = ", ".join(_name(head) for head, _ in heads)
            raise AttributionError(
                f"no relevance comes from {names} to {layer}: it has none for these inputs and this target, or the "
                f"layer is not below it; name the nearest layer first"
            )
        for (head, value), flow in zip(heads, found, strict=True):
            kept = [(_name(node), _name(head), float(flow[column])) for node, column in chosen if flow[column]]
            edges += kept
            others[_name(head)] = float(flow.sum()) - sum(weight for _, _, weight in kept)
            absorbed[_name(head)] = value - float(flow.sum())
        passed += _alternatives([head for head, _ in heads if head is not None])
        heads = [(node, float(found[:, column].sum())) for node, column in chosen]
    return graph_of([*nodes, *(_node(head, value) for head, value in heads)], edges, others, absorbed)


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
    """Return the units of one place as units that may be passed alike."""
    if not heads:
        return []
    numbers = tuple(number for head in heads for number in head.index or ())
    return [replace(heads[0], text=", ".join(map(str, heads)), index=numbers)]


def _name(head: Units | None) -> str:
    return OUTPUT if head is None else str(head)


def _node(head: Units | None, value: float) -> GraphUnit:
    return GraphUnit(_name(head), OUTPUT if head is None else head.place.name, value)


def _value(model: nn.Module, inputs: Any, unit: Any, target: Any, composite: Any) -> float:
    """Return the mean relevance of the unit above all, or of the explained number."""
    if unit is None:
        return float(attribute(model, inputs, target=target, composite=composite).output.double().mean())
    return float(_all(relevances(model, inputs, unit, target=target, composite=composite)[0])[1].sum())


def _all(measured: Measured) -> tuple[list[int], Tensor]:
    """Return the numbers of units, and the mean over samples of their relevance at all places: [1, units]."""
    values, counted = measured.flat
    return measured.numbers, values.double().masked_fill(~counted, 0).sum(2).mean(0)[None]


def _fed(
    model: nn.Module,
    inputs: Any,
    conditions: list[Condition],
    layer: Units,
    target: Any,
    composite: str | Composite,
    batch_size: int | None,
) -> tuple[list[int], Tensor]:
    """Return the numbers of a layer's units, and the mean relevance that they have under each condition."""
    with torch.inference_mode(False), torch.enable_grad(), statistics_kept(model):
        given, goals, _ = read(model, inputs, target, None, ())
        check_single(goals)
        rows = given.repeated(len(conditions))
        run = EdgesRun(model, composite_of(composite), rows, [], conditions, watched=[layer])
        run.all(given, goals, batch_size)
    numbers = [node.unit or 0 for node in run.nodes]
    return numbers, torch.cat(run.parts).unflatten(0, (given.count, len(conditions))).double().mean(0)
