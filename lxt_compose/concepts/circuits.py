"""Circuits: the units that carry a behavior, found by relevance, and measured by patching.

A circuit is found on pairs of inputs, *clean* and *corrupted*. The effect of a node is by how much the explained number
changes if the node alone is set to what it was on the corrupted input. It is estimated for all nodes at once by
:func:`attribute_nodes`, and measured for one node at a time by :func:`patch_nodes`, which is the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.entry import read
from ..attribution.run import composite_of, statistics_kept
from ..composite import Composite
from ..torch_internals.traces import on_cpu
from .intervene import record
from .judge import Judge, check_single
from .measure import SlotsRun
from .nodes import Effects, Node, nodes_of
from .units import Place, find_units


def attribute_nodes(
    model: nn.Module,
    clean: Any,
    corrupted: Any,
    units: Any,
    *,
    target: Any,
    per: str = "unit",
    method: str | Composite = "relp",
) -> Effects:
    """Estimate the effects of all nodes by two forward passes and one backward pass.

    ``effect = sum (a_corrupted - a_clean) * c`` over the elements of a node, with the coefficients c that a backward
    pass on the clean input gives: those of LRP for relevance patching, the gradient for attribution patching.

    Args:
        model: any module.
        clean: inputs as for :func:`~lxt_compose.attribute`.
        corrupted: other inputs of the same shapes.
        units: see :func:`find_units`; every unit that is named, or their places, become nodes.
        target: the explained number, see :func:`~lxt_compose.attribute`, such as ``(a, b)`` for a difference of logits.
        per: "unit", "place" (such as a token), "both" (each unit at each place) or "whole".
        method: "relp"; "gradient" for attribution patching; or a composite in the gradient formulation.

    Raises:
        ValueError: there are several targets for each sample, ``per`` is unknown, shapes differ, or the method has
            another formulation.
        AttributionError: a place was not reached, or ran several times and no call was named.

    Source: Jafari et al. 2025 (RelP), section 3; Nanda 2023 (attribution patching).
    """
    composite = Composite(formulation="gradient", defaults=False) if method == "gradient" else composite_of(method)
    if composite.formulation != "gradient":
        raise ValueError("coefficients are those of the gradient formulation: Composite(..., formulation='gradient')")
    found = find_units(model, units)
    other = record(model, corrupted, found)
    with torch.inference_mode(False), torch.enable_grad(), statistics_kept(model):
        given, goals, _ = read(model, clean, target, None, ())
        check_single(goals)
        run = SlotsRun(model, composite, given, [], found, values=True)
        run.batches(goals, None, progress=False, ledger=False)
        nodes: list[Node] = []
        values: list[Tensor] = []
        for each in found:
            caught = run.once(each.place)
            layout = run.layout(caught)
            assert caught.value is not None
            product = (_recorded(other, each.place, caught.value) - caught.value) * run.arrived[caught]
            mine = list(nodes_of(each, layout, per))
            sums = layout.per_unit(product)
            nodes += mine
            values.append(on_cpu(torch.stack([_of_node(sums, node) for node in mine], 1)))
    return Effects(tuple(nodes), torch.cat(values, 1))


def patch_nodes(
    model: nn.Module,
    clean: Any,
    corrupted: Any,
    units: Any,
    *,
    target: Any,
    per: str = "unit",
    batch_size: int = 256,
) -> Effects:
    """Measure the effects of all nodes: each one alone is set to its corrupted values, and the model runs again.

    Args:
        model: any module.
        clean: inputs as for :func:`~lxt_compose.attribute`.
        corrupted: other inputs of the same shapes.
        units: see :func:`attribute_nodes`.
        target: the same; without an index the arg-max of the clean input.
        per: the same.
        batch_size: how many rows, of samples times nodes, to run at a time.

    Raises:
        ValueError: there are several targets for each sample, or ``per`` is unknown.
    """
    judge = Judge(model, clean, corrupted, units, target)
    nodes = judge.nodes(per)
    values = judge.run([[node] for node in nodes], batch_size) - judge.clean[:, None]
    return Effects(tuple(nodes), values)


def faithfulness(
    model: nn.Module,
    clean: Any,
    corrupted: Any,
    effects: Effects,
    *,
    target: Any,
    counts: Sequence[int],
    batch_size: int = 256,
) -> Tensor:
    """Return how much of the behavior the best nodes hold alone: one number for each count.

    All nodes but the k with the largest effects are set to their corrupted values. The faithfulness is
    ``(m - m_corrupted) / (m_clean - m_corrupted)`` of the means over samples: 1 if the k nodes do all of it, 0 if none.

    Args:
        model: any module.
        clean: inputs as for :func:`~lxt_compose.attribute`.
        corrupted: other inputs of the same shapes.
        effects: give the nodes, and their order.
        target: the explained number.
        counts: how many nodes are kept, such as ``[0, 1, 2, 4, 8]``.
        batch_size: how many rows, of samples times counts, to run at a time.

    Raises:
        ValueError: the explained number is the same on clean and corrupted inputs.

    Source: Wang et al. 2023 (IOI), section 4; Marks et al. 2024, section 4, for the ratio.
    """
    judge = Judge(model, clean, corrupted, [node.units for node in effects.nodes], target)
    ranked = effects.ranked()
    found = judge.run([ranked[count:] for count in counts], batch_size).mean(0)
    worst = judge.corrupted.mean()
    whole = judge.clean.mean() - worst
    if whole == 0:
        raise ValueError("the explained number has the same mean on clean and corrupted inputs")
    return (found - worst) / whole


def _recorded(values: dict[str, list[Tensor]], place: Place, like: Tensor) -> Tensor:
    kept = values[place.name][0]
    if kept.shape != like.shape:
        raise ValueError(
            f"{place.name} has the shape {list(like.shape)} on the clean inputs and {list(kept.shape)} on the "
            f"corrupted: they must be of the same shapes"
        )
    return kept.to(like)


def _of_node(sums: Tensor, node: Node) -> Tensor:
    """Return the amount of a node for each sample, from [samples, units, *places]."""
    found = sums if node.unit is None else sums[:, node.unit : node.unit + 1]
    if node.at is not None:
        whole: tuple[Any, ...] = (slice(None), slice(None), *node.at)
        found = found[whole]
    return found.flatten(1).sum(1)
