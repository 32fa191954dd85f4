"""Graphs of units: nodes, the relevance that passes from one to another, exports and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..extras import needed
from .notebooks import html_of

if TYPE_CHECKING:
    from networkx import DiGraph  # type: ignore[import-untyped]

_SHOWN, _EDGES = 40, 240


class GraphUnit(NamedTuple):
    """A node: its name, the place where it is, and its relevance (or effect)."""

    name: str
    place: str
    value: float


@dataclass(frozen=True, eq=False)
class UnitGraph:
    """Units and the relevance between them: ``edges`` are (lower, upper, weight), by the names of ``nodes``.

    ``others`` is, by node, the relevance from units that are no nodes; ``absorbed`` that from no unit of the layer
    below: the shares of biases and rules, and what goes around that layer. Where they are known (:func:`concept_graph`)
    a node's value is the sum of its incoming edges and of these two.
    """

    nodes: tuple[GraphUnit, ...]
    edges: tuple[tuple[str, str, float], ...]
    others: dict[str, float]
    absorbed: dict[str, float]

    @property
    def places(self) -> list[str]:
        """The places of nodes, from the lowest up: by the edges, or in the order of nodes."""
        at = {node.name: node.place for node in self.nodes}
        below: dict[str, set[str]] = {node.place: set() for node in self.nodes}
        for lower, upper, _ in self.edges:
            if at[lower] != at[upper]:
                below[at[upper]].add(at[lower])
        try:
            return list(TopologicalSorter(below).static_order())
        except CycleError:  # such as of a module that runs several times
            return list(below)

    def largest(self, count: int) -> UnitGraph:
        """Return the graph of the nodes with the largest absolute values, and the edges between these."""
        kept = sorted(self.nodes, key=lambda node: -abs(node.value))[:count]
        names = {node.name for node in kept}
        edges = tuple(edge for edge in self.edges if edge[0] in names and edge[1] in names)
        return UnitGraph(tuple(node for node in self.nodes if node.name in names), edges, self.others, self.absorbed)

    def networkx(self) -> DiGraph:
        """Return the graph for networkx: nodes have a ``value`` and a ``place``, edges a ``weight``.

        Raises:
            ImportError: networkx is not installed.
        """
        networkx = needed("networkx", "graphs of units need networkx: pip install 'lxt-compose[concepts]'")
        graph = networkx.DiGraph()
        for node in self.nodes:
            graph.add_node(node.name, value=node.value, place=node.place)
            for what, values in (("others", self.others), ("absorbed", self.absorbed)):
                if node.name in values:
                    graph.nodes[node.name][what] = values[node.name]
        graph.add_weighted_edges_from(self.edges)
        return graph

    def heatmap(self, most: int = _SHOWN) -> Any:
        """Return a picture: a column for each place, edges as wide as what passes; red for the target, blue against.

        Args:
            most: how many nodes are shown, those with the largest values; of edges the 240 largest between them.

        Raises:
            ValueError: there is no node.
        """
        from ..heatmap import graph

        shown = self.largest(most)
        edges = sorted(shown.edges, key=lambda edge: -abs(edge[2]))[:_EDGES]
        nodes = [
            (node.name, node.place, node.name.removeprefix(node.place) or "all", node.value) for node in shown.nodes
        ]
        return graph(nodes, edges, columns=[place for place in self.places if place in {n[1] for n in nodes}])

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write a file by its name: ``.graphml``, or a picture ``.html``, ``.png``, ``.pdf``, ``.svg``.

        Args:
            path: the file.
            options: of a picture, see :class:`~lxt_compose.heatmap.Picture`.

        Raises:
            ValueError: the name has another ending.
            FileNotFoundError: the folder does not exist.
            ImportError: networkx or matplotlib is needed, but not installed.
        """
        from ..heatmap.picture import writable

        if Path(path).suffix.lower() != ".graphml":
            written: Path = self.heatmap().save(path, **options)
            return written
        graph, path = self.networkx(), writable(path)
        import networkx

        networkx.write_graphml(graph, path)
        return path

    def __repr__(self) -> str:
        best = ", ".join(node.name for node in sorted(self.nodes, key=lambda node: -abs(node.value))[:3])
        return f"<UnitGraph of {len(self.nodes)} nodes and {len(self.edges)} edges; largest: {best}>"

    def _repr_html_(self) -> str:
        return html_of(self, self.heatmap)


def graph_of(
    nodes: Iterable[GraphUnit],
    edges: Iterable[tuple[str, str, float]],
    others: dict[str, float] | None = None,
    absorbed: dict[str, float] | None = None,
) -> UnitGraph:
    """Return a graph; of nodes with one name the first stays."""
    named: dict[str, GraphUnit] = {}
    for node in nodes:
        named.setdefault(node.name, node)
    return UnitGraph(tuple(named.values()), tuple(edges), others or {}, absorbed or {})
