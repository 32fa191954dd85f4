"""Quantized layers of torchao and bitsandbytes: their relevance is that of the model with dequantized weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lxt_compose import AlphaBeta, Composite, Epsilon, Gamma, attribute

pytestmark = pytest.mark.filterwarnings("ignore")
RULES = {"relevance": None, "epsilon": Epsilon(), "gamma": Gamma(0.25), "alpha_beta": AlphaBeta()}


def composite_of(name, kind=nn.Linear):
    """AttnLRP in one of both formulations, or a rule for layers of a kind."""
    rule = RULES.get(name)
    return Composite({} if rule is None else {kind: rule}, formulation=name if name in FORMULATIONS else "relevance")


FORMULATIONS = ("gradient", "relevance")
COMPOSITES = ("gradient", *RULES)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32)).eval()


def inputs():
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(1))


def relevances(quantized, plain, composite):
    """Those of both models; that of the quantized one is complete, and its values are its own."""
    x = inputs()
    found = attribute(quantized, x, composite=composite, target=3)
    assert found.report.complete, str(found.report)
    assert torch.equal(found.output, quantized(x)[:, 3].detach())
    return found.relevance, attribute(plain, x, composite=composite, target=3).relevance


def assert_near(found, right, tolerance):
    torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance * float(right.abs().max()))


def by_torchao(config):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model, plain = network(), network()
    quantization.quantize_(model, config(quantization))
    for place in (0, 2):
        plain[place].weight.data = model[place].weight.dequantize().float()
    return model, plain


TORCHAO = {  # tolerances: those that round activations too have other values than the dequantized model
    "int8": (lambda q: q.Int8WeightOnlyConfig(), 1e-5),
    "int4": (lambda q: q.IntxWeightOnlyConfig(weight_dtype=torch.int4), 1e-5),
    "fp8": (lambda q: q.Float8WeightOnlyConfig(), 1e-5),
    "int8, activations too": (lambda q: q.Int8DynamicActivationInt8WeightConfig(), 0.05),
    "int4, activations too": (lambda q: q.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4), 0.1),
}


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("kind", TORCHAO)
def test_torchao(kind, name):
    config, tolerance = TORCHAO[kind]
    assert_near(*relevances(*by_torchao(config), composite_of(name)), tolerance)


def by_bitsandbytes(kind):
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model, plain = network(), network()
    for place in (0, 2):
        layer = plain[place]
        if kind == "nf4":
            made = library.nn.Linear4bit(64, layer.out_features, compute_dtype=torch.float32, quant_type="nf4")
            made.weight = library.nn.Params4bit(layer.weight.data.clone(), requires_grad=False, quant_type="nf4")
        else:
            made = library.nn.Linear8bitLt(64, layer.out_features, has_fp16_weights=False)
            made.weight = library.nn.Int8Params(layer.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
        made.bias = nn.Parameter(layer.bias.data.clone())
        model[place] = made.to("cpu")
    model(inputs())  # int8 weights are made at the first call
    for place in (0, 2):
        made = model[place]
        if kind == "nf4":
            weight = library.functional.dequantize_4bit(made.weight.data, made.weight.quant_state)
        else:
            state = made.state
            codes, scale = (made.weight.CB, made.weight.SCB) if state.CB is None else (state.CB, state.SCB)
            weight = codes.float() * (scale / 127)[:, None]
        plain[place].weight.data = weight.float()
    return model, plain


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize(("kind", "tolerance"), [("nf4", 1e-3), ("int8", 0.05)])
def test_bitsandbytes(kind, tolerance, name):
    assert_near(*relevances(*by_bitsandbytes(kind), composite_of(name)), tolerance)


class Packed(nn.Module):
    """Two numbers of four bits in each byte, with a scale and a zero for each group: as GPTQ, AWQ and HQQ have it."""

    def __init__(self, layer, group=16):
        super().__init__()
        rows = layer.weight.data.unflatten(1, (-1, group))
        low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
        self.register_buffer("scale", (high - low) / 15)
        self.register_buffer("zero", low)
        codes = ((rows - low) / self.scale).round().to(torch.uint8)
        self.register_buffer("packed", codes[..., ::2] | (codes[..., 1::2] << 4))
        self.bias = layer.bias

    def weight(self):
        codes = torch.stack([self.packed & 15, self.packed >> 4], -1).flatten(-2)
        return (codes * self.scale + self.zero).flatten(1)

    def forward(self, x):
        return F.linear(x, self.weight(), self.bias)


@pytest.mark.parametrize("name", COMPOSITES)
def test_modules_that_dequantize_by_themselves(name):
    plain = network()
    model = copy.deepcopy(plain)
    for place in (0, 2):
        model[place] = Packed(plain[place])
        plain[place].weight.data = model[place].weight()
    found = attribute(model, inputs(), composite=composite_of(name, Packed), target=3)
    right = attribute(plain, inputs(), composite=composite_of(name), target=3)
    assert found.report.complete, str(found.report)
    assert_near(found.relevance, right.relevance, 1e-5)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_floats_of_8_bits_in_a_model_are_uncovered(formulation):
    """Autograd rounds what flows back to 3 bits, to 0 or beyond the largest number where it is small or large."""

    class Rounded(nn.Linear):
        def forward(self, x):
            x = x.to(torch.bfloat16)
            return super().forward(x.to(torch.float8_e4m3fn).to(torch.float32))

    model, x = nn.Sequential(nn.Linear(8, 8), Rounded(8, 4)), torch.randn(2, 8)
    for _ in range(2):
        (row,) = attribute(model, x, target=1, composite=Composite(formulation=formulation)).report.uncovered
        assert (row.path, row.note) == ("1", "relevance that flows back through floats of 8 bits is rounded to them")
