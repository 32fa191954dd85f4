"""Pictures of graphs: what is drawn is what was given."""

import pytest

from lxt_compose.heatmap import graph
from lxt_compose.heatmap.colors import AGAINST, FOR

pytest.importorskip("matplotlib")
NODES = [("a", "low", "[0]", -1.0), ("b", "low", "[1]", 2.0), ("c", "top", "[7]", 1.0)]
EDGES = [("a", "c", -1.0), ("b", "c", 4.0)]


def drawn(picture, *, dark=False):
    from matplotlib.patches import FancyBboxPatch, PathPatch

    axes = picture.figure(dark=dark).axes[0]
    boxes = [p for p in axes.patches + axes.artists if isinstance(p, FancyBboxPatch)]
    curves = [p for p in axes.patches + axes.artists if isinstance(p, PathPatch) and not isinstance(p, FancyBboxPatch)]
    return axes, boxes, curves


@pytest.mark.parametrize("dark", [False, True])
def test_nodes_stand_in_their_columns_and_edges_lead_between_them(dark):
    axes, boxes, curves = drawn(graph(NODES, EDGES), dark=dark)
    assert len(boxes) == 3
    assert boxes[0].get_x() == boxes[1].get_x() < boxes[2].get_x()
    assert len({box.get_y() for box in boxes[:2]}) == 2
    for curve in curves:
        start, end = curve.get_path().vertices[[0, -1]]
        assert start[0] == pytest.approx(boxes[0].get_x() + boxes[0].get_width())
        assert end[0] == pytest.approx(boxes[2].get_x())
    assert {text.get_text() for text in axes.texts} >= {"low", "top", "[0]", "[1]", "[7]", "-1", "+2", "+1"}


def test_edges_are_as_wide_as_their_weights_and_have_their_color():
    _, _, (thin, wide) = drawn(graph(NODES, EDGES))
    assert wide.get_linewidth() > 3 * thin.get_linewidth()
    for curve, color in ((thin, AGAINST), (wide, FOR)):
        assert [round(255 * c) for c in curve.get_edgecolor()[:3]] == list(color)


def test_what_is_shown_as_html():
    shown = graph(NODES, EDGES).html()
    assert "graph of 3 nodes and 2 edges: a -1; b +2; c +1" in shown
    assert shown.count("<img") == 2
    assert repr(graph(NODES, EDGES)) == "<GraphHeatmap: 3 nodes, 2 edges>"


@pytest.mark.parametrize(
    ("nodes", "edges", "options", "message"),
    [
        ([], [], {}, "each with a name of its own"),
        ([NODES[0], NODES[0]], [], {}, "each with a name of its own"),
        (NODES, [("a", "x", 1.0)], {}, "the edge from 'a' to 'x' is between nodes that were not given"),
        (NODES, EDGES, {"columns": ["low"]}, "'top' is none of the columns low"),
        (NODES, [("a", "c", float("nan"))], {}, "must be finite"),
        ([(str(n), "low", "", 1.0) for n in range(401)], [], {}, "at most 400 nodes and edges, got 401"),
    ],
)
def test_errors(nodes, edges, options, message):
    with pytest.raises(ValueError, match=message):
        graph(nodes, edges, **options)
