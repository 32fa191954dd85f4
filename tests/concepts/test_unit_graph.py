"""Graphs of units: their order, exports, pictures."""

import pytest

from lxt_compose.concepts.unit_graph import GraphUnit, UnitGraph, graph_of

NODES = [GraphUnit("top[1]", "top", 3.0), GraphUnit("low[0]", "low", -1.0), GraphUnit("low[4]", "low", 2.0)]
EDGES = [("low[0]", "top[1]", -1.0), ("low[4]", "top[1]", 2.0)]


@pytest.fixture
def graph():
    return graph_of([*NODES, GraphUnit("low[0]", "low", 9.0)], EDGES, {"top[1]": 1.5}, {"top[1]": 0.5})


def test_of_one_name_the_first_stays(graph):
    assert graph.nodes == tuple(NODES)


def test_places_are_ordered_as_edges_lead(graph):
    assert graph.places == ["low", "top"]
    around = UnitGraph(graph.nodes, (*graph.edges, ("top[1]", "low[0]", 1.0)), {}, {})
    assert around.places == ["top", "low"]


def test_largest(graph):
    small = graph.largest(2)
    assert {node.name for node in small.nodes} == {"top[1]", "low[4]"}
    assert small.edges == (EDGES[1],)


def test_networkx_and_graphml(graph, tmp_path):
    networkx = pytest.importorskip("networkx")
    made = graph.networkx()
    assert made.nodes["top[1]"] == {"value": 3.0, "place": "top", "others": 1.5, "absorbed": 0.5}
    assert made.edges["low[0]", "top[1]"]["weight"] == -1.0
    read = networkx.read_graphml(graph.save(tmp_path / "graph.graphml"))
    assert (dict(read.nodes.items()), dict(read.edges.items())) == (dict(made.nodes.items()), dict(made.edges.items()))


def test_it_shows_itself_and_is_saved(graph, tmp_path):
    pytest.importorskip("matplotlib")
    assert "top[1] +3" in graph._repr_html_()
    assert "3 nodes and 2 edges; largest: top[1]" in repr(graph)
    assert graph.save(tmp_path / "graph.png", dark=True).stat().st_size > 1000
    with pytest.raises(FileNotFoundError, match=r"does not exist, so 'graph.graphml' cannot be written"):
        graph.save(tmp_path / "none" / "graph.graphml")
    with pytest.raises(ValueError, match=r"saved as .html, .png, .pdf or .svg, got 'graph.txt'"):
        graph.save(tmp_path / "graph.txt")


def test_of_many_edges_the_largest_are_drawn():
    nodes = [GraphUnit(f"{place}[{n}]", place, 1.0) for place in ("low", "top") for n in range(20)]
    edges = [(f"low[{a}]", f"top[{b}]", 1.0 + 20 * a + b) for a in range(20) for b in range(20)]
    shown = graph_of(nodes, edges).heatmap()
    assert {edge[2] for edge in shown.edges} == {1.0 + n for n in range(160, 400)}


def test_without_networkx(graph, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "networkx", None)
    with pytest.raises(ImportError, match=r"graphs of units need networkx: pip install 'lxt-compose\[concepts\]'"):
        graph.networkx()
