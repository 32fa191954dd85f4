"""Removing parts of series, volumes, videos, graphs and of one of several inputs: by hand, for linear models."""

import pytest
import torch
from support import Fn, assert_close
from torch import nn

from lxt_compose import Composite, attribute, evaluate

EXACT = Composite(formulation="gradient")
LAYOUTS = {
    "a series": ("batch channel time", (2, 3, 8), None),
    "patches of a series": ("batch channel time", (2, 3, 8), 4),
    "a volume": ("batch channel depth height width", (2, 2, 4, 2, 6), None),
    "patches of a volume": ("batch channel depth height width", (2, 2, 4, 2, 6), 2),
    "patches of a volume with three sizes": ("batch channel depth height width", (2, 2, 4, 2, 6), (4, 1, 3)),
    "a video": ("batch frame channel height width", (2, 3, 2, 4, 4), None),
    "patches of a video": ("batch frame channel height width", (2, 3, 2, 4, 4), 2),
    "images, channels last": ("batch height width channel", (2, 4, 6, 3), (2, 3)),
    "nodes": ("node feature", (5, 3), None),
    "samples second": ("time batch feature", (4, 2, 3), None),
    "a wave": ("batch time", (2, 8), 2),
    "a table": ("batch feature", (2, 4), None),
}


def linear(dims, shape):
    """A sum with a weight for each place: what a unit contributes is the sum of weight times value in it."""
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dims = dims.split()
    batch = dims.index("batch") if "batch" in dims else None

    def forward(self, x):
        w = weight.index_select(batch, torch.zeros(x.shape[batch], dtype=torch.long)) if batch is not None else weight
        y = (x * w).sum(dim=[i for i in range(x.dim()) if i != batch])
        return torch.stack([y, -y], -1).reshape(-1, 2)

    return Fn(forward).eval(), torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def pooled(scores, patch, first):
    sizes = (patch,) * (scores.dim() - first) if isinstance(patch, int) else patch
    for dim, size in enumerate(sizes, first):
        scores = scores.unflatten(dim, (-1, size)).sum(dim + 1)
    return scores


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [None, 3])
def test_what_each_part_of_a_linear_model_contributes(layout, size):
    dims, shape, patch = LAYOUTS[layout]
    model, x = linear(dims, shape)
    found = attribute(model, x, target=0, composite=EXACT, dims=dims)
    effects = evaluate.leave_one_out(model, x, target=0, dims=dims, patch=patch, batch_size=size)
    expected = found.scores
    if patch is not None:
        patch = (1, 2, 2) if layout == "patches of a video" else patch
        expected = pooled(expected, patch, 1)
    assert_close(effects, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_curves_begin_with_all_and_end_with_the_baseline(layout, baseline):
    dims, shape, patch = LAYOUTS[layout]
    model, x = linear(dims, shape)
    found = attribute(model, x, target=0, composite=EXACT, dims=dims)
    flipped = evaluate.flip(model, x, found, target=0, dims=dims, patch=patch, baseline=baseline, steps=3)
    assert_close(flipped.morf[:, 0], found.output)
    names = dims.split()
    kept = [i for i, name in enumerate(names) if name not in ("channel", "feature", "batch")]
    rest = 0 * x
    if baseline == "mean":
        rest = x.mean(names.index("batch") if layout == "a table" else kept, keepdim=True).expand_as(x)
    assert_close(flipped.morf[:, -1], model(rest)[:, 0])
    assert_close(flipped.lerf[:, -1], model(rest)[:, 0])
    if baseline == "zero":  # the greatest contributions go first
        assert (flipped.morf[:, 1] <= flipped.lerf[:, 1]).all()


def test_one_of_several_inputs():
    w = torch.randn(3, dtype=torch.float64)
    model = Fn(lambda self, a, b: torch.stack([(a * w).sum(1) + 2 * b.sum((1, 2)), b.sum((1, 2))], 1)).eval()
    given = {"a": torch.randn(2, 3, dtype=torch.float64), "b": torch.randn(2, 4, 5, dtype=torch.float64)}
    dims = {"b": "batch channel time"}
    found = attribute(model, given, target=0, composite=EXACT, dims=dims)
    for name in given:
        effects = evaluate.leave_one_out(model, given, target=0, dims=dims, input=name)
        assert_close(effects, found.scores[name])
        flipped = evaluate.flip(model, given, found, target=0, dims=dims, input=name)
        assert flipped.gain > 0
    with pytest.raises(ValueError, match="there is no input 'c' that could be changed; there are a, b"):
        evaluate.leave_one_out(model, given, target=0, dims=dims, input="c")


def test_choices_of_token_ids():
    torch.manual_seed(0)
    model = Fn(
        lambda self, ids: self.e(ids.flatten(0, 1)).sum((1, 2)).unflatten(0, ids.shape[:2]), e=nn.Embedding(9, 4)
    )
    ids = torch.arange(12).reshape(2, 2, 3) % 9
    expected = attribute(model.double(), ids, target=1, composite=EXACT).scores
    assert_close(evaluate.leave_one_out(model, ids, target=1), expected)


@pytest.mark.parametrize(
    ("dims", "shape", "patch", "error", "message"),
    [
        ("batch channel time", (2, 3, 8), 3, ValueError, r"patches of 3 do not tile time of \[8\]"),
        ("batch channel time", (2, 3, 8), "3", TypeError, "a whole number or one for each of time, got '3'"),
        ("batch token feature", (2, 3, 8), 3, ValueError, "patches are of images"),
        (
            "batch channel depth height width",
            (1, 1, 4, 4, 4),
            (2, 2),
            TypeError,
            "one for each of depth, height, width",
        ),
    ],
)
def test_patches_that_do_not_fit(dims, shape, patch, error, message):
    model, x = linear(dims, shape)
    with pytest.raises(error, match=message):
        evaluate.leave_one_out(model, x, target=0, dims=dims, patch=patch)


def test_a_randomized_model_of_series():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    found = evaluate.randomization(model, torch.randn(2, 2, 30), explain=EXACT, target=1)
    assert found.signed.shape == (2, 2)
