"""Nodes of circuits, and their effects on the number that is explained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .notebooks import html_of
from .units import Layout, Place, Units

PER = ("whole", "unit", "place", "both")
"""Kinds of nodes: a whole tensor, one unit of it, one place of it, or one unit at one place."""


@dataclass(frozen=True)
class Node:
    """Units that are patched together: all or one of a place, everywhere or at one of its places."""

    place: Place
    unit: int | None = None
    at: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Such as ``"blocks.0.attn:heads[2]@5"``."""
        unit = "" if self.unit is None else f"[{self.unit}]"
        return self.place.name + unit + ("" if self.at is None else f"@{','.join(map(str, self.at))}")

    @property
    def units(self) -> Units:
        """The node as units, for interventions and conditions."""
        return Units(self.name, self.place, None if self.unit is None else (self.unit,), self.at)


@dataclass(frozen=True, eq=False)
class Effects:
    """The effect of each node on the explained number: ``values`` [samples, nodes], in the unit of that number."""

    nodes: tuple[Node, ...]
    values: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over samples, [nodes]."""
        return self.values.mean(0)

    def __add__(self, other: Effects) -> Effects:
        """Return these effects and those of other nodes on the same samples."""
        return Effects(self.nodes + other.nodes, torch.cat([self.values, other.values], 1))

    def ranked(self) -> list[Node]:
        """Return the nodes by the size of their mean effect, the largest first."""
        order = self.mean.abs().argsort(descending=True, stable=True)
        return [self.nodes[number] for number in order.tolist()]

    def correlation(self, other: Effects) -> float:
        """Return Pearson's correlation of the effects with others of the same nodes, over nodes and samples.

        Raises:
            ValueError: the nodes are others, or effects do not vary.
        """
        if self.nodes != other.nodes:
            raise ValueError("correlations are between effects of the same nodes")
        pair = torch.stack([self.values.double().flatten(), other.values.double().flatten()])
        if (pair.std(1) == 0).any():
            raise ValueError("the effects are all equal, so there is no correlation")
        return float(torch.corrcoef(pair)[0, 1])

    def heatmap(self, most: int = 30) -> Any:
        """Return a picture: bars of the means over samples, the largest first.

        Args:
            most: how many nodes are shown; the others are added up.
        """
        from ..heatmap import bars

        return bars([node.name for node in self.nodes], self.mean, titles="effects, means over samples", most=most)

    def _repr_html_(self) -> str:
        return html_of(self, self.heatmap)

    def __repr__(self) -> str:
        best = ", ".join(node.name for node in self.ranked()[:3])
        return f"<Effects of {len(self.nodes)} nodes on {len(self.values)} samples; largest: {best}>"


def nodes_of(units: Units, layout: Layout, per: str) -> Iterator[Node]:
    """Yield the nodes of some units."""
    if per not in PER:
        raise ValueError(f"per must be one of {', '.join(PER)}, got {per!r}")
    dims = layout.places
    numbers = units.numbers(layout) if per in ("unit", "both") or units.index is not None else [None]
    mask = Units(units.text, units.place, None, units.at).mask(layout)
    kept = [(mask.expand(layout.shape).movedim(d, 0).flatten(1).any(1)).nonzero().flatten().tolist() for d in dims]
    places: list[tuple[int, ...] | None] = [None]
    if dims and (per in ("place", "both") or units.at is not None):
        places = [tuple(at) for at in torch.cartesian_prod(*map(torch.tensor, kept)).reshape(-1, len(dims)).tolist()]
    for number in numbers:
        for at in places:
            yield Node(units.place, number, at)
