"""What results show of themselves in a notebook."""

import sys

import pytest
import torch
from support import make

from lxt_compose.concepts import attribute_nodes, effect, find_references, patch_nodes
from lxt_compose.concepts.notebooks import html_of


def test_effects_and_changes_of_logits():
    model, x = make("mlp")
    effects = attribute_nodes(model, x, x.flip(0), "act", target=1)
    best = effects.ranked()[0].name
    assert f"<td>{best}</td>" in effects._repr_html_()
    assert len(effects.heatmap(3).rows(0)) == 4
    changed = effect(model, x, "act[0:4]")
    assert f"{float(changed.change.mean(0)[2]):+.4g}" in changed._repr_html_()
    assert "two" in changed.heatmap(["zero", "one", "two"]).html()
    assert patch_nodes(model, x, x.flip(0), "act", target=1)._repr_html_().count("<tr>") == 8


def test_references_are_a_table_of_the_largest_means():
    model, x = make("mlp")
    found = find_references(model, [x], "act", k=2, target=0)
    rows = found.table(3)
    order = found.mean("act").argsort(descending=True)[:3].tolist()
    assert [row["number"] for row in rows] == order
    assert rows[0]["best"] == found.of("act", order[0])
    shown = found._repr_html_()
    assert f"References by relevance: the best 2 of {len(x)} samples" in shown
    assert f"{rows[0]['best'][0].sample} ({rows[0]['best'][0].value:.3g})" in shown


def test_without_matplotlib_there_is_a_text(monkeypatch):
    from lxt_compose.concepts import edges

    model, x = make("mlp")
    found = edges(model, x, "fc2", "act", target=0)
    pytest.importorskip("matplotlib")
    assert "<img" in found._repr_html_()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "&lt;Edges of" in found._repr_html_()
    assert "pictures need matplotlib" in found._repr_html_()


def test_what_cannot_be_drawn_is_told():
    def fail():
        raise ValueError("no <node>")

    assert html_of(torch.nn.ReLU(), fail) == "<p>ReLU()</p><p>no &lt;node&gt;</p>"
