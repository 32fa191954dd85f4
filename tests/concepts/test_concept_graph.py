"""Graphs of what feeds a unit, against chains of masks by hand; their edges sum to their nodes."""

from itertools import pairwise

import pytest
import torch
from support import assert_close, fingerprint, make
from torch import nn

from lxt_compose import AttributionError, Composite, attribute
from lxt_compose.concepts import concept_graph

GRADIENT = Composite(formulation="gradient")


def chain(bias=False):
    torch.manual_seed(2)
    sizes = (5, 16, 16, 8, 3)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double(), torch.randn(3, 5, dtype=torch.float64)


def by_hand(model, x, unit, kept):
    """Relevance at layer 1 that has passed kept units of layer 3 and one unit of layer 5: [samples, kept, units].

    The relevance of a net of ReLUs without biases is gradient times input, step by step.
    """
    a1 = model[:2](x)
    a3 = model[2:4](a1)
    a5 = model[4:6](a3)
    out = []
    for v in kept:
        g5 = torch.zeros_like(a5)
        g5[:, unit] = model[6].weight[1, unit]
        (g3,) = torch.autograd.grad(a5, a3, g5, retain_graph=True)
        one = torch.zeros_like(g3)
        one[:, v] = g3[:, v]
        (g1,) = torch.autograd.grad(a3, a1, one, retain_graph=True)
        out.append((g1 * a1).detach())
    return torch.stack(out, 1)


def test_edges_are_those_of_masks_by_hand():
    model, x = chain()
    x.requires_grad_()
    before = fingerprint(model)
    graph = concept_graph(model, x.detach(), "5[1]", ["3", "1"], target=1, composite=GRADIENT, keep=2)
    assert fingerprint(model) == before
    upper = [node for node in graph.nodes if node.place == "3"]
    kept = [int(node.name[2:-1]) for node in upper]
    expected = by_hand(model, x, 1, kept).mean(0)
    weights = {(lower, above): weight for lower, above, weight in graph.edges}
    below = [int(node.name[2:-1]) for node in graph.nodes if node.place == "1"]
    assert sorted(below) == sorted(expected.sum(0).abs().topk(2).indices.tolist())
    for row, v in enumerate(kept):
        for w in below:
            assert weights.get((f"1[{w}]", f"3[{v}]"), 0.0) == pytest.approx(float(expected[row, w]), abs=1e-12)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("bias", [False, True])
def test_what_comes_in_sums_to_the_node_and_so_does_what_goes_out(unit, bias):
    model, x = chain(bias)
    alive = int((model[:6](x) > 0).sum(0).argmax())
    graph = concept_graph(
        model, x, f"5[{alive}]" if unit else None, ["3", "1", "0:input"], target=1, composite=GRADIENT, keep=2
    )
    lowest = graph.places[0]
    for name, place, value in graph.nodes:
        into = sum(weight for _, upper, weight in graph.edges if upper == name)
        out = [weight for lower, _, weight in graph.edges if lower == name]
        if place != lowest:
            assert into + graph.others[name] + graph.absorbed[name] == pytest.approx(value, abs=1e-12)
            assert bias or graph.absorbed[name] == pytest.approx(0.0, abs=1e-12)
        if place != graph.places[-1]:
            assert sum(out) == pytest.approx(value, abs=1e-12)


def test_all_units_kept_is_the_relevance_of_the_layer():
    model, x = make("cnn")
    latent = attribute(model, x, target=1, layers="1").latent["1"].sum((2, 3)).mean(0)
    graph = concept_graph(model, x, None, ["3", "1"], target=1, keep=100)
    found = {node.name: node.value for node in graph.nodes if node.place == "1"}
    assert_close(torch.tensor([found[f"1[{n}]"] for n in range(len(latent))], dtype=latent.dtype), latent, 1e-6)
    assert all(abs(value) < 1e-9 for value in graph.others.values())


def test_batches_make_no_difference_and_heads_are_units():
    model, x = make("transformer")
    layers = ["blocks.0.mlp.1", "blocks.0.attention:heads"]
    whole = concept_graph(model, x, "blocks.1.mlp.1[3]", layers, target=0, keep=2)
    parts = concept_graph(model, x, "blocks.1.mlp.1[3]", layers, target=0, keep=2, batch_size=1)
    assert [node.name for node in whole.nodes] == [node.name for node in parts.nodes]
    assert "blocks.0.attention:heads[0]" in {node.name for node in whole.nodes}
    for one, other in zip(whole.edges, parts.edges, strict=True):
        assert one[2] == pytest.approx(other[2], rel=1e-5)


def test_errors():
    model, x = chain()
    with pytest.raises(ValueError, match="keep must be a whole number from 1 on, got 0"):
        concept_graph(model, x, "5[1]", "3", target=1, keep=0)
    with pytest.raises(ValueError, match=r"a graph is of one unit, such as .*; got '5'"):
        concept_graph(model, x, "5", "3", target=1)
    with pytest.raises(ValueError, match=r"'\?' names 7 places; the layers of a graph are of one each"):
        concept_graph(model, x, "6[0]", ["?"], target=1)
    with pytest.raises(AttributionError, match=r"no relevance comes from 1\[2\] to 5: it has none for"):
        concept_graph(model, x, "1[2]", "5", target=1)
