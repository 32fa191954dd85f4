"""Images by gradient ascent: what they converge to where it is known, regularizers against sums by hand, no trace."""

import pytest
import torch
from support import assert_close, fingerprint, make
from torch import nn

from lxt_compose import AttributionError
from lxt_compose.concepts import Ascent, Dictionary, activations, visualize
from lxt_compose.concepts.canvas import variation

STILL = {"jitter": 0, "rotate": 0, "zoom": 0}


def linear(planted):
    """A model whose units are products with planted images [units, channels, height, width]."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(planted[0].numel(), len(planted), bias=False)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(planted.flatten(1))
    return model


@pytest.mark.parametrize("parametrization", ["pixels", "fourier"])
def test_of_a_linear_unit_it_is_the_sign_of_its_weights(parametrization):
    planted = torch.ones(2, 1, 6, 8, dtype=torch.float64)
    planted[0, :, :3] = -1  # the lower half
    planted[1, :, :, 4:] = -1  # the left half
    how = Ascent(steps=150, rate=0.1, parametrization=parametrization, **STILL)
    found = visualize(linear(planted), "1", shape=(1, 6, 8), limits=(-1.0, 2.0), how=how)
    assert found.names == ("1[0]", "1[1]")
    assert float(((found.images > 0.5) == (planted > 0)).double().mean()) > 0.95
    best = torch.where(planted > 0, 2.0, -1.0).mul(planted).sum((1, 2, 3))
    assert (found.activations > 0.8 * best).all()
    assert found.images.min() >= -1
    assert found.images.max() <= 2


def test_the_least_active_is_the_opposite():
    planted = torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    how = Ascent(steps=120, rate=0.2, parametrization="pixels", **STILL)
    found = visualize(linear(planted), "1[0]", shape=(1, 4, 4), how=how, sign=-1.0)
    assert torch.equal(found.images[0] > 0.5, planted[0] < 0)


@pytest.mark.parametrize("units", ["3[0, 3]", "1[2]@3,3", "0:input"])
def test_activations_are_those_of_the_units(units):
    model, _ = make("cnn")
    model.eval()
    found = visualize(model, units, shape=(2, 8, 8), how=Ascent(steps=8))
    (measured,) = activations(model, found.images, units)
    values, counted = measured.flat
    mean = values.masked_fill(~counted, 0).sum(2) / counted.sum(2)
    assert_close(found.activations, mean.diagonal(), 1e-9)
    assert (found.activations >= found.first).all()


def test_heads_and_features_of_dictionaries():
    planted = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = linear(planted)
    found = visualize(model, Dictionary("1", torch.eye(3).double()[[1]]), shape=(1, 4, 4), how=Ascent(steps=20))
    (measured,) = activations(model, found.images, "1")
    assert_close(found.activations, measured.values[0, 1:2], 1e-9)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 24)

        def forward(self, x):
            q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            return nn.functional.scaled_dot_product_attention(q, k, v).mean((1, 2))

    attention = nn.Sequential(Attention()).double().eval()
    found = visualize(attention, "0:heads[1]", shape=(1, 4, 4), how=Ascent(steps=20))
    (measured,) = activations(attention, found.images, "0:heads[1]")
    assert_close(found.activations, measured.values.mean(2)[0], 1e-9)
    assert (found.activations > found.first).all()


def test_no_trace_and_seeds():
    model, _ = make("cnn")
    model.eval()
    before = fingerprint(model)
    one, two, other = (
        visualize(model, "1[0]", shape=(2, 8, 8), how=Ascent(steps=4, seed=seed)).images for seed in (1, 1, 2)
    )
    assert fingerprint(model) == before
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_total_variation_makes_images_smoother():
    planted = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ways = [Ascent(steps=60, parametrization="pixels", total_variation=w, **STILL) for w in (0.0, 50.0)]
    rough, smooth = (visualize(linear(planted), "1", shape=(1, 8, 8), how=how).images for how in ways)
    assert float(variation(smooth)) < 0.5 * float(variation(rough))


def test_it_shows_itself(tmp_path):
    pytest.importorskip("matplotlib")
    model, _ = make("cnn")
    found = visualize(model.eval(), "1[0:2]", shape=(2, 8, 8), how=Ascent(steps=2))
    assert repr(found) == "<FeatureImages of 2 units, 8x8: 1[0], 1[1]>"
    assert "1[1]: " in found._repr_html_()
    assert found.heatmap().save(tmp_path / "units.png").stat().st_size > 1000


def test_errors():
    model, _ = make("cnn")
    with pytest.raises(ValueError, match=r"in train mode: call model.eval\(\) first"):
        visualize(model.train(), "1", shape=(2, 8, 8))
    model.eval()
    with pytest.raises(ValueError, match=r"of one image, got \(8, 8\)"):
        visualize(model, "1", shape=(8, 8))
    with pytest.raises(ValueError, match=r"lowest and the highest value of a pixel, got \(1.0, 0.0\)"):
        visualize(model, "1", shape=(2, 8, 8), limits=(1.0, 0.0))
    with pytest.raises(ValueError, match="by 'fourier' or 'pixels', got 'dct'"):
        Ascent(parametrization="dct")
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        Ascent(steps=0)
    with pytest.raises(AttributionError, match="failed on the inputs"):
        visualize(model, "1", shape=(5, 8, 8))
    layer = nn.Conv2d(1, 1, 1)
    with pytest.raises(AttributionError, match=r"0 ran 2 times: say which call is meant, 0#1"):
        visualize(nn.Sequential(layer, layer).eval(), "0", shape=(1, 2, 2))

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(torch.ones(len(x), 2))

    with pytest.raises(AttributionError, match=r"layer\[0\] does not depend on the image"):
        visualize(Constant().requires_grad_(False).eval(), "layer", shape=(1, 2, 2))
