"""Flipping, randomizing and leaving out: against what can be worked out by hand on models that are simple enough."""

import math

import pytest
import torch
from support import Fn, label, make
from torch import nn

from lxt_compose import attribute, baselines, evaluate


class Seen(nn.Module):
    """A linear model that keeps what it was shown."""

    def __init__(self, weight, bias=0.0):
        super().__init__()
        self.weight, self.bias, self.shown = nn.Parameter(weight), bias, []

    def forward(self, x):
        self.shown.append(x.detach().clone())
        y = (x * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([y, -y], 1)


def linear(units=6, n=4):
    torch.manual_seed(0)
    return Seen(torch.randn(units, dtype=torch.float64), 0.5), torch.randn(n, units, dtype=torch.float64)


# ---- flip ----------------------------------------------------------------------------------------------------------


def test_the_curves_of_a_linear_model_by_hand():
    model, x = linear()
    contributions = (x * model.weight).detach()
    found = evaluate.flip(model, x, contributions, target=0)
    total = contributions.sum(1, keepdim=True) + 0.5
    most = contributions.sort(1, descending=True).values.cumsum(1)
    least = contributions.sort(1).values.cumsum(1)
    torch.testing.assert_close(found.morf, torch.cat([total, total - most], 1))
    torch.testing.assert_close(found.lerf, torch.cat([total, total - least], 1))
    torch.testing.assert_close(found.fractions, torch.arange(7) / torch.tensor(6.0, dtype=torch.float64))
    area = ((found.morf[:, 1:] + found.morf[:, :-1]) / 2).mean(1)
    torch.testing.assert_close(found.morf_area, area)
    assert found.gain == pytest.approx(float((found.lerf_area - found.morf_area).mean()))
    assert f"{found.gain:.4g}" in str(found)


def test_no_order_gains_more_than_the_true_one_and_the_opposite_loses_as_much():
    model, x = linear(8, 5)
    contributions = (x * model.weight).detach()
    best = evaluate.flip(model, x, contributions, target=0)
    for seed in range(20):
        other = evaluate.flip(model, x, baselines.random(model, x, seed=seed), target=0)
        assert (other.difference <= best.difference + 1e-12).all()
    worst = evaluate.flip(model, x, -contributions, target=0)
    torch.testing.assert_close(worst.difference, -best.difference)


def test_results_do_not_depend_on_the_batch_size_and_the_target_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    x, scores = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 6)
    whole = evaluate.flip(model, x, scores)
    for size in (1, 3, 7, 100):
        part = evaluate.flip(model, x, scores, batch_size=size)
        torch.testing.assert_close(part.morf, whole.morf)
        torch.testing.assert_close(part.lerf, whole.lerf)
    top = model(x).argmax(1)
    torch.testing.assert_close(evaluate.flip(model, x, scores, target=top).morf, whole.morf)
    torch.testing.assert_close(whole.morf[:, 0], model(x).amax(1).detach())
    everything_gone = model(torch.zeros_like(x))[torch.arange(5), top].detach()
    torch.testing.assert_close(whole.morf[:, -1], everything_gone)


def test_fewer_steps_remove_more_at_a_time():
    model, x = linear(6)
    scores = (x * model.weight).detach()
    every, some = evaluate.flip(model, x, scores, target=0), evaluate.flip(model, x, scores, target=0, steps=3)
    torch.testing.assert_close(some.morf, every.morf[:, ::2])
    torch.testing.assert_close(some.fractions, every.fractions[::2])


def image_model(n=2):
    torch.manual_seed(0)
    model = Seen(torch.randn(3, 4, 6, dtype=torch.float64))
    return model, torch.randn(n, 3, 4, 6, dtype=torch.float64)


@pytest.mark.parametrize("baseline", ["zero", "mean", "blur", 0.25, torch.full((1, 3, 1, 1), 0.5)])
def test_patches_of_images_take_what_the_baseline_says(baseline):
    model, x = image_model()
    scores = torch.arange(4.0).reshape(1, 2, 2).expand(2, 2, 2)
    evaluate.flip(model, x, scores, patch=(2, 3), baseline=baseline, target=0)
    shown = torch.cat(model.shown[1:])  # after the unchanged pass: MoRF, four steps for each sample
    stand_in = {
        "zero": torch.zeros_like(x),
        "mean": x.mean((2, 3), keepdim=True).expand_as(x),
        "blur": evaluate.removal.blurred(x),
        0.25: torch.full_like(x, 0.25),
    }.get(baseline if not isinstance(baseline, torch.Tensor) else None, torch.full_like(x, 0.5))
    for sample in range(2):
        for step in range(1, 5):
            gone = torch.zeros(4, 6, dtype=torch.bool)
            for rank in range(step):  # patch 3 (below, right) has the highest score
                row, column = divmod(3 - rank, 2)
                gone[2 * row : 2 * row + 2, 3 * column : 3 * column + 3] = True
            expected = torch.where(gone, stand_in[sample], x[sample])
            torch.testing.assert_close(shown[sample * 4 + step - 1], expected)


def test_blur_keeps_the_mean_of_what_is_even_and_smooths_what_is_not():
    flat = torch.full((1, 2, 8, 8), 3.0)
    torch.testing.assert_close(evaluate.removal.blurred(flat), flat)
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 4] = 1
    found = evaluate.removal.blurred(dot, sigma=1.0)[0, 0]
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found, found.T)
    assert float(found[4, 4]) == pytest.approx(0.162, abs=2e-3)  # 1 / (2 pi), up to the cut at two sigma
    assert found[4, 5] > found[4, 6] > 0


def test_pixel_scores_are_summed_over_patches():
    model, x = image_model()
    pixels = torch.randn(2, 4, 6)
    patches = pixels.reshape(2, 2, 2, 2, 3).sum((2, 4))
    by_pixels = evaluate.flip(model, x, pixels, patch=(2, 3), target=0)
    torch.testing.assert_close(by_pixels.morf, evaluate.flip(model, x, patches, patch=(2, 3), target=0).morf)


class Tokens(nn.Module):
    """The sum over real tokens of a number for each, read from an embedding with a second dimension of zeros."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 2)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.stack([torch.arange(9.0), torch.zeros(9)], 1))

    def forward(self, input_ids, attention_mask):
        y = (self.embedding(input_ids)[..., 0] * attention_mask).sum(1)
        return torch.stack([y, -y], 1)


TEXT = {
    "input_ids": torch.tensor([[5, 3, 8, 0, 0], [1, 2, 3, 4, 6]]),
    "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
}


def test_tokens_are_replaced_and_padding_is_not():
    found = evaluate.flip(Tokens(), TEXT, TEXT["input_ids"].float(), target=0, baseline=1, steps=5)
    # 16: 8 goes (-7), then 5 (-4), then 3 (-2); fractions of three real tokens: 0.6, 1.2, 1.8, 2.4, 3 -> 1, 1, 2, 2, 3
    assert found.morf[0].tolist() == [16, 9, 9, 5, 5, 3]
    assert found.lerf[0].tolist() == [16, 14, 14, 10, 10, 3]
    assert found.morf[1].tolist() == [16, 11, 8, 6, 5, 5]
    zero = evaluate.flip(Tokens(), TEXT, TEXT["input_ids"].float(), target=0, baseline="zero", steps=5)
    assert zero.morf[0].tolist() == [16, 8, 8, 3, 3, 0]
    mean = evaluate.flip(Tokens(), TEXT, TEXT["input_ids"].float(), target=0, baseline="mean", steps=5)
    assert mean.morf[1].tolist() == pytest.approx([16, 13.2, 12.4, 12.6, 13.8, 16])


def test_an_attribution_is_taken_as_scores():
    model, x = make("mlp")
    found = attribute(model, x, target=1)
    torch.testing.assert_close(
        evaluate.flip(model, x, found, target=1).morf, evaluate.flip(model, x, found.scores, target=1).morf
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": torch.zeros(4, 5)}, r"scores must be of shape \[4, 6\], one for each of the tokens or features"),
        ({"scores": torch.full((4, 6), torch.nan)}, "NaN or infinite"),
        ({"baseline": "blur"}, "must be one of zero, mean, a finite number"),
        ({"baseline": "noise"}, "got 'noise'"),
        ({"baseline": None}, "got None"),
        ({"baseline": True}, "got True"),
        ({"baseline": math.nan}, "got nan"),
        ({"baseline": torch.zeros(7)}, r"baseline of shape \[7\] does not broadcast to the input \[4, 6\]"),
        ({"baseline": torch.zeros(2, 4, 6)}, r"does not broadcast to the input \[4, 6\]"),
        ({"patch": 2}, "patches are of images"),
        ({"steps": 0}, "steps must be a whole number from 1 on, got 0"),
        ({"steps": 1.5}, "steps must be a whole number from 1 on, got 1.5"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 on, got 0"),
        ({"batch_size": -1}, "batch_size must be a whole number from 1 on, got -1"),
        ({"batch_size": True}, "batch_size must be a whole number from 1 on, got True"),
    ],
    ids=label,
)
def test_errors_say_what_is_wrong(options, message):
    model, x = linear()
    options = {"scores": torch.zeros(4, 6), **options}
    with pytest.raises(ValueError, match=message):
        evaluate.flip(model, x, options.pop("scores"), **options)


def test_patches_must_tile_the_image():
    model, x = image_model()
    for patch in (3, 0, -2, (2, 5)):
        with pytest.raises(ValueError, match=r"patches of -?\d x -?\d do not tile images"):
            evaluate.flip(model, x, torch.zeros(2, 1, 2), patch=patch)
    with pytest.raises(TypeError, match="the size of a patch is a whole number or"):
        evaluate.flip(model, x, torch.zeros(2, 1, 2), patch=2.5)


def test_what_is_no_model_and_a_model_that_fails_are_told():
    model, x = linear()
    with pytest.raises(TypeError, match=r"the model must be a torch.nn.Module, got 'model' of type str"):
        evaluate.flip("model", x, x)
    with pytest.raises(RuntimeError, match=r"failed on the inputs .*: \[4, 5\] float64 on cpu \(4 samples, which the"):
        evaluate.leave_one_out(model, x[:, :5])


def test_parts_that_cannot_be_removed():
    video = torch.randn(2, 1, 4, 6, 6)
    with pytest.raises(ValueError, match=r"not parts of an input of shape \[2, 1, 4, 6, 6\]"):
        evaluate.flip(Fn(lambda self, x: x.sum((1, 2, 3))), video, torch.zeros(2, 4, 6, 6), target=0)
    model, x = Fn(lambda self, x, y: x + y), (torch.randn(2, 3), torch.randn(2, 3))
    found = attribute(model, x)
    with pytest.raises(TypeError, match="several inputs; pass the scores of the one removed, 'args0'"):
        evaluate.flip(model, x, found)
    with pytest.raises(TypeError, match="several inputs, args0, args1; pass the scores of one of them"):
        evaluate.correlation(found, found)


def test_the_mean_token_does_not_depend_on_the_padding():
    alone = {name: value[:1, :3] for name, value in TEXT.items()}
    scores = TEXT["input_ids"].float()
    padded = evaluate.flip(Tokens(), TEXT, scores, target=0, baseline="mean", steps=3)
    found = evaluate.flip(Tokens(), alone, scores[:1, :3], target=0, baseline="mean", steps=3)
    assert padded.morf[0].tolist() == pytest.approx(found.morf[0].tolist())
    assert padded.morf[0, -1] == pytest.approx(16)


def test_curves_in_a_notebook():
    model, x = linear()
    shown = evaluate.flip(model, x, x)._repr_html_()
    assert shown.count("<polyline") == 2
    assert "least relevant first" in shown
    flat = evaluate.Flip(torch.linspace(0, 1, 3), torch.ones(2, 3), torch.ones(2, 3))._repr_html_()
    assert "nan" not in flat
    assert ">1.5</text>" in flat


# ---- leave one out -------------------------------------------------------------------------------------------------


def test_leaving_out_by_hand():
    model, x = linear()
    torch.testing.assert_close(evaluate.leave_one_out(model, x, target=0), (x * model.weight).detach())
    model, x = image_model()
    expected = (x * model.weight).detach().sum(1)
    torch.testing.assert_close(evaluate.leave_one_out(model, x, target=0), expected)
    by_patch = evaluate.leave_one_out(model, x, target=0, patch=2, batch_size=5)
    torch.testing.assert_close(by_patch, expected.reshape(2, 2, 2, 3, 2).sum((2, 4)))


def test_leaving_out_tokens_gives_padding_nothing():
    found = evaluate.leave_one_out(Tokens(), TEXT, target=0, baseline=1)
    assert found.tolist() == [[4, 2, 7, 0, 0], [0, 1, 2, 3, 5]]


# ---- correlation ---------------------------------------------------------------------------------------------------


def test_ranks_and_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(0)
    a = torch.randint(0, 5, (6, 11)).double()
    b = a + torch.randn(6, 11, dtype=torch.float64)
    assert evaluate.ranks(a).tolist() == [stats.rankdata(row).tolist() for row in a.numpy()]
    for kind, oracle in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        expected = [float(oracle(x, y).statistic) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
        torch.testing.assert_close(evaluate.correlation(a, b, kind=kind), torch.tensor(expected, dtype=torch.float64))


def test_scores_that_cannot_be_correlated():
    scores = torch.tensor([[1.0, math.nan, 3.0]])
    with pytest.raises(ValueError, match="the scores of sample 0 hold NaN or infinite values"):
        evaluate.correlation(scores, torch.ones(1, 3))
    kept = torch.tensor([[1, 0, 1]])
    assert evaluate.correlation(scores, torch.tensor([[0.0, 1.0, 2.0]]), mask=kept).tolist() == [1.0]
    with pytest.raises(ValueError, match=r"got \[3\]; those of one sample are scores\[None\]"):
        evaluate.correlation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert evaluate.correlation([[1, 2, 3]], [[3, 2, 1]]).tolist() == pytest.approx([-1.0])


def test_what_is_masked_does_not_count_and_constants_have_no_correlation():
    a = torch.tensor([[1.0, 2, 3, 9], [1, 1, 1, 1]])
    b = torch.tensor([[10.0, 20, 30, -5], [1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    found = evaluate.correlation(a, b, mask=mask)
    assert float(found[0]) == pytest.approx(1)
    assert found[1].isnan()
    with pytest.raises(ValueError, match="same shape"):
        evaluate.correlation(a, b[:, :3])
    with pytest.raises(ValueError, match="got 'kendall'"):
        evaluate.correlation(a, b, kind="kendall")


# ---- randomization -------------------------------------------------------------------------------------------------


def parameters_of(model):
    return [(name, p, p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()]


def unchanged(model, before):
    after = dict(model.named_parameters())
    same = [after[name] is p and torch.equal(p, value) and p.requires_grad == flag for name, p, value, flag in before]
    return all(same)


def test_layers_go_from_the_output_to_the_input_and_come_back():
    model, x = make("transformer")
    before = parameters_of(model)
    found = evaluate.randomization(model, x, target=0)
    assert unchanged(model, before)
    assert found.layers[0] == "head"
    assert found.layers[-1] == "blocks.0.norm1"
    assert found.signed.shape == found.absolute.shape == (len(found.layers), 2)
    assert found.signed.abs().max() <= 1 + 1e-9
    again = evaluate.randomization(model, x, target=0)
    torch.testing.assert_close(found.signed, again.signed, equal_nan=True)
    assert not torch.equal(found.signed, evaluate.randomization(model, x, target=0, seed=1).signed)
    assert "randomized down to" in str(found)
    assert "<script>" not in found._repr_html_()


def test_one_graph_explains_all_randomized_models():
    net, x = make("transformer")
    calls = []
    model = Fn(lambda self, x: (calls.append(1), self.net(x))[1], net=net)
    eager, often = evaluate.randomization(model, x, target=0), len(calls)
    calls.clear()
    found = evaluate.randomization(model, x, target=0, traced="auto")
    assert torch.equal(found.signed, eager.signed)
    assert torch.equal(found.absolute, eager.absolute)
    assert len(calls) <= often - 11  # of 14 explanations two run the model, the second as a graph is made of it


def test_what_does_not_look_at_the_model_stays_the_same():
    model, x = make("mlp")
    blind = evaluate.randomization(model, x, explain=lambda model, x, target: x)
    assert torch.allclose(blind.signed, torch.ones_like(blind.signed))


def test_what_is_the_model_changes_with_it():
    """For one linear layer gradient x input is x times a row of its weight; drawn anew, it is x times another one."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(60, 3)).double(), torch.ones(2, 60, dtype=torch.float64)
    found = evaluate.randomization(
        model, x, target=1, explain=lambda m, x, t: baselines.gradient_x_input(m, x, target=t)
    )
    assert found.layers == ("0",)
    assert found.signed.abs().max() < 0.4
    assert found.signed[0, 0] == pytest.approx(float(found.signed[0, 1]))


def test_groups_of_layers():
    model, x = make("transformer")
    found = evaluate.randomization(model, x, target=0, layers=3)
    every = evaluate.randomization(model, x, target=0)
    assert len(found.layers) == 3
    assert found.layers[-1] == every.layers[-1]
    with pytest.raises(ValueError, match="from 1 to 13"):
        evaluate.randomization(model, x, layers=14)


@pytest.mark.parametrize(
    ("explain", "error", "message"),
    [
        (3, TypeError, "explain must be a preset's name, a Composite or a function of .* got 3"),
        (lambda *_: None, TypeError, "explain must return a tensor or an Attribution of one input, got NoneType"),
        (lambda *_: torch.ones(3, 6), ValueError, r"scores \[n, ...\] of n = 4 samples, .* got \[3, 6\]"),
        (lambda *_: torch.tensor(1.0), ValueError, r"of n = 4 samples, .* got \[\]"),
    ],
    ids=["a number", "nothing", "samples", "a scalar"],
)
def test_wrong_ways_to_explain(explain, error, message):
    model, x = make("mlp")
    before = parameters_of(model)
    with pytest.raises(error, match=message):
        evaluate.randomization(model, x, explain=explain)
    assert unchanged(model, before)


def test_the_class_of_a_contrast_stays_that_of_the_intact_model():
    model, x = make("mlp")
    chosen = model(x).argmax(1)
    asked = []

    def explain(model, x, target):
        asked.append(target)
        return x

    evaluate.randomization(model, x, explain=explain, target=(None, "others"))
    evaluate.randomization(model, x, explain=explain, target=(None, 2))
    assert all(torch.equal(first, chosen) for first, _ in asked)
    assert asked[0][1] == "others"
    assert asked[-1][1].tolist() == [2] * 4


def test_the_model_comes_back_after_an_error():
    model, x = make("mlp")
    before = parameters_of(model)
    calls = []

    def explain(model, x, target):
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("on purpose")
        return x

    with pytest.raises(KeyError):
        evaluate.randomization(model, x, explain=explain)
    assert unchanged(model, before)


def test_parameters_that_no_module_call_uses_go_with_their_parent():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Fn(lambda self, x: self.head(self.attention(x, x, x)[0].mean(1)), attention=attention, head=nn.Linear(8, 3))
    weights = []

    def explain(model, x, target):
        weights.append(attention.out_proj.weight.detach().clone())
        return x.sum(-1)

    found = evaluate.randomization(model.eval(), torch.randn(2, 5, 8), explain=explain)
    assert found.layers == ("head", "attention")
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
