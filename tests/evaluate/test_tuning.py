"""Tuning against what can be worked out by hand: known best candidates, folds, batches, failures, memory."""

import sys

import pytest
import torch
from support import fingerprint
from torch import nn

from lxt_compose import AttributionError, Composite, Gamma, attribute, evaluate
from lxt_compose.evaluate.tuning import folds_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 16, 3)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))


def images(n=12):
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))


GAMMAS = evaluate.Grid("gamma_vit", conv_gamma=[0.1, 1.0], linear_gamma=[0.0, 0.5])


def test_values_are_those_of_flip_whatever_the_batches():
    model, x = Net().eval(), images()
    before = fingerprint(model)
    found = evaluate.tune(model, x, ["attnlrp", GAMMAS], patch=2, folds=3, batch_size=5)
    assert fingerprint(model) == before
    for candidate, values in zip(found.candidates, found.values, strict=True):
        scores = attribute(model, x, composite=candidate.composite)
        torch.testing.assert_close(values, evaluate.flip(model, x, scores, patch=2).difference, rtol=1e-5, atol=1e-6)
    again = evaluate.tune(model, iter([x[:7], x[7:]]), ["attnlrp", GAMMAS], patch=2, folds=3)
    torch.testing.assert_close(again.values, found.values, rtol=1e-5, atol=1e-6)
    assert torch.equal(again.fold, found.fold)


@pytest.mark.parametrize("traced", ["auto", True])
def test_one_graph_for_each_candidate_gives_the_same_bits(traced):
    model, x, calls = Net().eval(), images(), []

    def score(result, numbers):
        calls.append(result.ran)
        return result.scores.amax((1, 2))

    options = {"score": score, "folds": 3, "batch_size": 4, "target": 1}
    eager = evaluate.tune(model, x, ["attnlrp", GAMMAS], **options)
    assert set(calls) == {"eager"}
    calls.clear()
    found = evaluate.tune(model, x, ["attnlrp", GAMMAS], traced=traced, **options)
    assert torch.equal(found.values, eager.values)
    first = ["one graph" if traced is True else "eager: made the second time that such inputs are explained"] * 5
    assert calls == first + ["one graph"] * 10


def test_targets_of_batches():
    model, x = Net().eval(), images(8)
    target = torch.arange(8) % 3
    whole = evaluate.tune(model, x, "attnlrp", target=target, folds=2)
    parts = evaluate.tune(model, iter([x[:3], x[3:]]), "attnlrp", target=iter([target[:3], target[3:]]), folds=2)
    torch.testing.assert_close(whole.values, parts.values, rtol=1e-5, atol=1e-6)
    one = evaluate.tune(model, iter([x[:3], x[3:]]), "attnlrp", target=2, folds=2)
    torch.testing.assert_close(one.values, evaluate.tune(model, x, "attnlrp", target=2, folds=2).values)


class Sums(nn.Module):
    """A sum over all features of all tokens; padded, of several lengths."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(9, 5), nn.Linear(30, 2, bias=False)

    def forward(self, input_ids, attention_mask):
        states = self.words(input_ids) * attention_mask[..., None]
        return self.head(states.flatten(1))


def test_tokens_with_padding_and_a_candidate_that_is_known_to_be_the_best():
    model = Sums().double().eval()
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 9, (20, 6), generator=generator)
    mask = (torch.arange(6) < torch.randint(3, 7, (20, 1), generator=generator)).long()

    inputs = {"input_ids": ids, "attention_mask": mask}
    worst = Composite({nn.Linear: Gamma(100.0)}, formulation="gradient")
    found = evaluate.tune(model, inputs, {"gamma 100": worst, "lrp 0": "attnlrp"})
    assert found.best.name == "lrp 0"  # in a linear model exact contributions cannot be beaten
    assert [candidate.name for candidate in found.chosen] == ["lrp 0"] * 5
    flip = evaluate.flip(model, inputs, attribute(model, inputs))
    torch.testing.assert_close(found.values[1], flip.difference)


def test_folds_are_seeded_and_of_equal_size():
    fold = folds_of(23, 5, 0)
    assert sorted(fold.bincount().tolist()) == [4, 4, 5, 5, 5]
    assert torch.equal(fold, folds_of(23, 5, 0))
    assert not torch.equal(fold, folds_of(23, 5, 1))


def test_trials_are_drawn_in_the_order_given():
    model, x = Net().eval(), images(4)
    found = evaluate.tune(model, x, GAMMAS, trials=2, folds=2, steps=1, seed=3)
    names = [candidate.name for candidate in GAMMAS.candidates()]
    picked = [candidate.name for candidate in found.candidates]
    assert len(picked) == 2
    assert picked == [name for name in names if name in picked]
    assert picked == [c.name for c in evaluate.tune(model, x, GAMMAS, trials=2, folds=2, steps=1, seed=3).candidates]


def test_a_candidate_that_fails_is_told_and_left_out():
    model, x = Net().eval(), images(6)
    wrong = Composite({"cnov": Gamma(0.1)})
    found = evaluate.tune(model, x, {"wrong": wrong, "attnlrp": "attnlrp"}, folds=2, batch_size=2)
    assert found.failed["wrong"].startswith("MatchError: ")
    assert found.values[0].isnan().all()
    assert found.best.name == "attnlrp"
    assert "failed" in str(found)
    with pytest.raises(AttributionError, match=r"no candidate can explain Net; wrong: .*cnov"):
        evaluate.tune(model, x, {"wrong": wrong}, folds=2)


def test_a_pipeline_of_transformers():
    pipelines = pytest.importorskip("transformers").pipelines

    class Pipe:
        """What attribute() needs of a pipeline."""

        def __init__(self):
            self.model = Net().eval()

        def preprocess(self, one):
            return {"x": images(8)[one : one + 1]}

    assert pipelines is not None
    found = evaluate.tune(Pipe(), [0, 1, 2, 3], "attnlrp", folds=2, steps=2)
    torch.testing.assert_close(
        found.values, evaluate.tune(Net().eval(), images(8)[:4], "attnlrp", folds=2, steps=2).values
    )
    by_batches = evaluate.tune(Pipe(), iter([[0, 1], [2, 3]]), "attnlrp", folds=2, steps=2)
    torch.testing.assert_close(by_batches.values, found.values, rtol=1e-5, atol=1e-6)


def test_no_more_than_a_batch_is_held_at_a_time():
    most = []

    class Watched(Net):
        def forward(self, x):
            most.append(len(x))
            return super().forward(x)

    evaluate.tune(Watched().eval(), images(12), "attnlrp", batch_size=3, folds=2)
    assert max(most) == 3


def test_progress_counts_explanations(capsys):
    evaluate.tune(Net().eval(), images(4), ["attnlrp", "cp_lrp"], folds=2, steps=1, batch_size=3, progress=True)
    shown = capsys.readouterr().err
    assert "8/8" in shown
    assert "cp_lrp" in shown


def test_progress_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="progress=True needs tqdm"):
        evaluate.tune(Net().eval(), images(4), "attnlrp", folds=2, progress=True)


WRONG = {
    "folds": (
        {"folds": 1},
        ValueError,
        "folds must be a whole number from 2 to the number of samples, which is 4, got 1",
    ),
    "more folds than samples": ({}, ValueError, r"which is 4, got 5 \(the default is 5\); pass folds=4"),
    "trials": ({"trials": 0, "folds": 2}, ValueError, "trials must be"),
    "confidence": ({"confidence": 1.0, "folds": 2}, ValueError, "confidence must be between 0 and 1, got 1.0"),
    "steps": ({"steps": 0, "folds": 2}, ValueError, "steps must be"),
    "batch size": ({"batch_size": 0, "folds": 2}, ValueError, "batch_size must be"),
    "score": ({"score": "gian", "folds": 2}, ValueError, "score must be one of gain"),
    "input": ({"input": "y", "folds": 2}, ValueError, "there is no input 'y'.*there are x"),
    "argument": (
        {"pach": 2},
        TypeError,
        "no argument 'pach'; of how parts are removed it takes baseline, patch",
    ),
    "traced": ({"traced": "always", "folds": 2}, ValueError, "traced must be False, 'auto' or True, got 'always'"),
    "patch": ({"patch": 3, "folds": 2}, ValueError, "patches of 3 x 3 do not tile"),
}


@pytest.mark.parametrize(("options", "error", "match"), WRONG.values(), ids=WRONG)
def test_what_is_out_of_range(options, error, match):
    with pytest.raises(error, match=match):
        evaluate.tune(Net().eval(), images(4), ["attnlrp", "cp_lrp"], **options)


def test_no_samples():
    with pytest.raises(ValueError, match="inputs is empty"):
        evaluate.tune(Net().eval(), iter([]), "attnlrp")
