"""Layers' dimensions: which of them counts units, by the module or by what ran beside it."""

import pytest
import torch
from support import Fn, assert_close
from torch import nn

from lxt_compose import Composite, attribute, blocks

EXACT = Composite(formulation="gradient")


def explain(model, x, layers, **options):
    return attribute(model.double().eval(), x.double(), target=1, composite=EXACT, layers=layers, **options)


def units(found, layer):
    return {neuron.unit: neuron.relevance for neuron in found.neurons(1000, layer=layer)}


def net(conv, norm, pool, size=6):
    torch.manual_seed(0)
    return nn.Sequential(conv(2, size, 3, padding=1), norm(size), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(size, 2))


NETS = {
    "series": (net(nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d), (2, 2, 7), "batch channel time"),
    "images": (net(nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d), (2, 2, 7, 8), "batch channel height width"),
    "volumes": (
        net(nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d), (2, 2, 5, 7, 8), "batch channel depth height width",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("size", [None, 1])
def test_units_of_convolutions_are_channels(kind, size):
    model, shape, dims = NETS[kind]
    found = explain(model, torch.randn(shape), ["0", "1", "2", "3", "2:input"], batch_size=size)
    for layer, relevance in found.latent.items():
        assert " ".join(found.dims_of(layer)) == dims
        expected = relevance.transpose(0, 1).flatten(1).sum(1) / 2
        assert units(found, layer) == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-12)
    one = explain(model, torch.randn(shape), "1").neurons(1, sample=1)[0]
    assert one.unit < 6


def test_blocks_of_a_transformer():
    torch.manual_seed(0)
    model = Fn(
        lambda self, x: self.head(self.body(x).mean(1)),
        body=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2), head=nn.Linear(8, 2),
    )  # fmt: skip
    found = explain(model, torch.randn(2, 5, 8), [*blocks(model), "body.*"])
    assert found.latent
    assert {found.dims_of(layer) for layer in found.latent} == {("batch", "token", "feature")}


@pytest.mark.parametrize("size", [None, 1])
def test_layers_whose_samples_come_second(size):
    torch.manual_seed(0)
    model = Fn(
        lambda self, x: self.head(self.body(x).mean(0)),
        body=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 2), head=nn.Linear(8, 2),
    )  # fmt: skip
    found = explain(model, torch.randn(5, 3, 8), ["*.linear1", "*.linear2", "*.norm2"], batch_size=size)
    assert len(found) == 3
    for layer, relevance in found.latent.items():
        assert found.dims_of(layer) == ("token", "batch", "feature")
        assert relevance.shape[:2] == (5, 3)
        assert units(found, layer)[2] == pytest.approx(float(relevance[..., 2].sum()) / 3)
    names, scores = found.trace(2)
    assert names[0] == "args0"
    assert len(names) == 7
    assert_close(scores[-1], found.latent[names[-1]][:, 2].sum(-1))


def test_frames_that_are_made_samples_of():
    model = Fn(
        lambda self, x: self.head(self.conv(x.flatten(0, 1)).relu().mean((2, 3)).unflatten(0, x.shape[:2]).sum(1)),
        conv=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 2),
    )  # fmt: skip
    found = explain(model, torch.randn(2, 5, 3, 6, 6), "conv")
    relevance = found.latent["conv"]
    assert relevance.shape == (10, 4, 4, 4)
    assert units(found, "conv")[3] == pytest.approx(float(relevance[:, 3].sum()) / 2)
    of_one = {n.unit: n.relevance for n in found.neurons(4, sample=1)}
    assert of_one[3] == pytest.approx(float(relevance[5:, 3].sum()))


def test_gpt2_keeps_its_weights_in_modules_of_its_own():
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2)).eval()
    found = attribute(model, {"input_ids": torch.arange(10).reshape(2, 5)}, layers=["*.mlp.*", "*.h.0", "*.wte"])
    assert len(found.latent) == 6
    assert {found.dims_of(layer) for layer in found.latent} == {("batch", "token", "feature")}


class Weights(nn.Module):
    def forward(self, x):
        return torch.softmax(x[:, None, :, None] * x[:, None, None, :], -1).repeat(1, 2, 1, 1)


def test_what_nobody_tells_is_refused_and_can_be_said():
    model, x = Fn(lambda self, x: self.a(x).flatten(2).sum(2) + 0 * x[:, :2], a=Weights()), torch.randn(2, 4)
    with pytest.raises(
        ValueError, match=r"it is not known what the dimensions of a, of shape \[2, 2, 4, 4\], are: pass"
    ):
        explain(model, x, "a").neurons()
    found = explain(model, x, "a", dims={"a": "batch channel query token"})
    assert units(found, "a")[1] == pytest.approx(float(found.latent["a"][:, 1].sum()) / 2)
    with pytest.raises(ValueError, match="dims names 'b', but what is explained is args0, a"):
        explain(model, x, "a", dims={"b": "batch channel query token"})
