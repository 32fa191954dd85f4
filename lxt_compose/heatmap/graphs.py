"""Graphs in columns: nodes with their relevance, and edges as wide as the relevance that passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .colors import AGAINST, FOR, over, scale_of, strength
from .picture import DARK, LIGHT, Picture, color_bar, drawn, fonts, new_figure, number, text_width, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 400
# In inches, but for sizes of text in points.
_ROW, _GAP, _PAD, _HIGH, _HEAD, _FOOT, _SIZE, _SMALL = 0.5, 1.0, 0.12, 0.36, 0.4, 0.7, 9.0, 7.5
_WIDEST = 6.0
"""The width of the widest edge, in points."""


class GraphNode(NamedTuple):
    """A node: its name, its column, its label, and its relevance."""

    name: str
    column: str
    label: str
    value: float


def graph(
    nodes: Iterable[tuple[str, str, str, float]],
    edges: Iterable[tuple[str, str, float]],
    *,
    columns: Sequence[str] | None = None,
    limit: float | None = None,
) -> GraphHeatmap:
    """Return a picture of a graph: columns from left to right, red for the target, blue against it.

    Args:
        nodes: (name, column, label, value) of each; names are unique.
        edges: (from, to, weight), names of nodes.
        columns: their order; by default the one in which nodes name them.
        limit: the value of full color and of the widest edge; by default the largest absolute one of nodes, and of
            edges.

    Raises:
        ValueError: there is no node, a name comes twice, an edge names no node, a column is none of those that were
            named, a value is not finite, or there are more than a picture can hold.
    """
    found = [GraphNode(*node) for node in nodes]
    kept = list(edges)
    names = {node.name for node in found}
    if not found or len(names) < len(found):
        raise ValueError("a graph has nodes, each with a name of its own")
    if len(found) + len(kept) > _MOST:
        raise ValueError(
            f"a picture shows at most {_MOST} nodes and edges, got {len(found) + len(kept)}: pass the largest"
        )
    loose = [edge for edge in kept if not {edge[0], edge[1]} <= names]
    if loose:
        raise ValueError(f"the edge from {loose[0][0]!r} to {loose[0][1]!r} is between nodes that were not given")
    order = list(dict.fromkeys(node.column for node in found)) if columns is None else list(columns)
    lost = [node.column for node in found if node.column not in order]
    if lost:
        raise ValueError(f"{lost[0]!r} is none of the columns {', '.join(order)}")
    scales = scale_of([n.value for n in found], limit), scale_of([w for _, _, w in kept], limit)
    return GraphHeatmap(tuple(found), tuple(kept), tuple(order), *scales)


@dataclass(frozen=True, repr=False)
class GraphHeatmap(Picture):
    """A graph in columns; made by :func:`graph`. ``scale`` is full color's value, ``widest`` the largest weight."""

    nodes: tuple[GraphNode, ...]
    edges: tuple[tuple[str, str, float], ...]
    columns: tuple[str, ...]
    scale: float
    widest: float

    title = "graph of relevance"

    def __repr__(self) -> str:
        return f"<GraphHeatmap: {len(self.nodes)} nodes, {len(self.edges)} edges>"

    def html(self) -> str:
        """Return the graph as pictures inside of the HTML: one for light, one for dark backgrounds."""
        shown = [f"{node.name} {number(node.value)}" for node in self.nodes]
        return drawn(self, f"graph of {len(self.nodes)} nodes and {len(self.edges)} edges", shown[:20])

    def figure(self, *, dark: bool = False) -> Figure:
        """Return the graph, with one bar of colors."""
        inside = {column: [node for node in self.nodes if node.column == column] for column in self.columns}
        widths = {column: _width(column, mine) for column, mine in inside.items()}
        most = max(map(len, inside.values()))
        width = max(sum(widths.values()) + _GAP * (len(widths) - 1) + 2 * _PAD, 3.4)
        height = _HEAD + most * _ROW + _FOOT
        figure = new_figure(width, height, dark=dark)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.set_axis_off()
        left, boxes = _PAD, {}
        for column, mine in inside.items():
            top = height - _HEAD - (most - len(mine)) * _ROW / 2
            for place, node in enumerate(mine):
                boxes[node.name] = (left, top - (place + 0.5) * _ROW, widths[column])
            self._write(axes, left + widths[column] / 2, height - _HEAD / 2, column, dark, bold=True)
            left += widths[column] + _GAP
        for edge in sorted(self.edges, key=lambda edge: abs(edge[2])):
            self._edge(axes, boxes[edge[0]], boxes[edge[1]], edge[2])
        for node in self.nodes:
            self._node(axes, boxes[node.name], node, dark)
        long = min(2.0, width - 1.2)
        box = ((width - long) / 2 / width, 0.42 / height, long / width, 0.11 / height)
        color_bar(figure, box, self.scale, dark=dark, deep=False)
        return figure

    def _write(
        self, axes: Any, x: float, y: float, text: str, dark: bool, *, bold: bool = False, size: float = _SIZE
    ) -> None:
        ink = [c / 255 for c in (DARK if dark else LIGHT)[1]]
        style = {"ha": "center", "va": "center", "family": fonts(), "parse_math": False, "zorder": 4}
        axes.text(x, y, visible(text), size=size, color=ink, weight="bold" if bold else "normal", **style)

    def _node(self, axes: Any, box: tuple[float, float, float], node: GraphNode, dark: bool) -> None:
        from matplotlib.patches import FancyBboxPatch

        left, middle, width = box
        background, _ = DARK if dark else LIGHT
        color = [c / 255 for c in over(background, strength(node.value, self.scale))]
        shape = FancyBboxPatch(
            (left, middle - _HIGH / 2), width, _HIGH, boxstyle="round,pad=0,rounding_size=0.06", facecolor=color,
            edgecolor="0.55", linewidth=0.6, zorder=3,
        )  # fmt: skip
        axes.add_artist(shape)
        self._write(axes, left + width / 2, middle + 0.075, node.label, dark)
        self._write(axes, left + width / 2, middle - 0.095, number(node.value), dark, size=_SMALL)

    def _edge(
        self, axes: Any, lower: tuple[float, float, float], upper: tuple[float, float, float], weight: float
    ) -> None:
        """Draw a curve from the right of the one node to the left of the other."""
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        (x0, y0, width), (x1, y1, _) = lower, upper
        x0, bend = x0 + width, max(abs(x1 - x0 - width) / 2, _GAP / 2)
        curve = Path([(x0, y0), (x0 + bend, y0), (x1 - bend, y1), (x1, y1)], [1, 4, 4, 4])
        size = abs(strength(weight, self.widest))
        color = [c / 255 for c in (FOR if weight > 0 else AGAINST)]
        axes.add_artist(
            PathPatch(
                curve, fill=False, edgecolor=color, alpha=0.25 + 0.6 * size, linewidth=0.4 + _WIDEST * size, zorder=2
            )
        )


def _width(column: str, nodes: Sequence[GraphNode]) -> float:
    """Return how wide a column is: as its heading, its labels and numbers, whichever is longest."""
    sizes = [1.15 * _SIZE * text_width(visible(column)) - 2 * _PAD]
    sizes += [_SIZE * text_width(visible(node.label)) for node in nodes]
    sizes += [_SMALL * text_width(number(node.value)) for node in nodes]
    return max(sizes) + 2 * _PAD
