"""Scores of whole units against sums by hand, and pruning of units that leaves no trace."""

import pytest
import torch
from support import assert_close, fingerprint, make

from lxt_compose import attribute
from lxt_compose.concepts import prune_units, record, unit_scores


@pytest.mark.parametrize("aggregate", ["sum", "absolute", "norm"])
def test_relevance_is_that_of_the_layer(aggregate):
    model, x = make("cnn")
    each = attribute(model, x, target=1, layers="3").latent["3"].sum((2, 3))
    expected = {"sum": each.sum(0).abs(), "absolute": each.abs().sum(0), "norm": each.norm(dim=0)}[aggregate]
    found = unit_scores(model, x.split(1), "3", target=1, aggregate=aggregate)
    assert_close(found.values[0], expected)


def test_activation_and_magnitude_by_hand():
    model, x = make("cnn")
    seen = record(model, x, "1")["1"][0]
    assert_close(unit_scores(model, x.split(1), "1", by="activation").values[0], seen.abs().sum((0, 2, 3)))
    weight = model[0].weight.detach()
    assert_close(unit_scores(model, [x], "0[1:]", by="magnitude").values[0], weight[1:].square().sum((1, 2, 3)).sqrt())


@pytest.mark.parametrize("within", ["model", "place"])
def test_the_least_are_held_at_zero(within):
    model, x = make("transformer")
    before = fingerprint(model)
    scores = unit_scores(model, [x], ["blocks.0.mlp.1", "blocks.*.attention:heads"], target=0)
    assert len(scores.named) == 16 + 2 * 2
    with prune_units(model, scores, 0.5, within=within):
        held = record(model, x, ["blocks.0.mlp.1", "blocks.*.attention:heads"])
    assert fingerprint(model) == before
    gone = []
    for each, values in zip(scores.units, scores.values, strict=True):
        tensor = held[each.place.name][0]
        tensor = tensor if each.place.side else tensor.movedim(-1, 1)
        zero = (tensor.flatten(2) if tensor.dim() > 2 else tensor).transpose(0, 1).flatten(1).eq(0).all(1)
        gone.append((values, zero))
    groups = gone if within == "place" else [tuple(torch.cat(part) for part in zip(*gone, strict=True))]
    for values, zero in groups:
        assert int(zero.sum()) == len(zero) // 2
        assert values[zero].max() <= values[~zero].min()


def test_nothing_is_pruned_at_zero_and_all_at_one():
    model, x = make("mlp")
    scores = unit_scores(model, [x], "act", target=0)
    with torch.no_grad():
        answers = model(x)
        with prune_units(model, scores, 0.0):
            assert torch.equal(model(x), answers)
        with prune_units(model, scores, 1.0):
            assert torch.equal(model(x), model.fc2.bias.expand_as(answers))


def test_random_is_seeded():
    model, x = make("mlp")
    one, two, other = (unit_scores(model, [x], "act", by="random", seed=seed).values[0] for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_it_shows_itself():
    model, x = make("mlp")
    scores = unit_scores(model, [x], "act[0:3]", target=0)
    assert "3 units of act[0:3]" in repr(scores)
    assert "act[2]" in scores._repr_html_()


def test_errors():
    model, x = make("mlp")
    with pytest.raises(ValueError, match="got by='size'"):
        unit_scores(model, [x], "act", by="size")
    with pytest.raises(ValueError, match="aggregate='mean'"):
        unit_scores(model, [x], "act", aggregate="mean")
    with pytest.raises(ValueError, match="there were no batches"):
        unit_scores(model, [], "act")
    with pytest.raises(ValueError, match="act have no magnitude: they are not what a layer"):
        unit_scores(model, [x], "act", by="magnitude")
    scores = unit_scores(model, [x], "act", target=0)
    with pytest.raises(ValueError, match="a share from 0 to 1, got 30"):
        prune_units(model, scores, 30)
    with pytest.raises(ValueError, match="got within='layer'"):
        prune_units(model, scores, 0.5, within="layer")
