"""Split rules where numbers are few or far apart: half precision, outputs nearly all bias, bounds by sample."""

import copy

import oracles
import pytest
import torch
from support import Fn, assert_close
from torch import nn

import lxt_compose.rules.linear_layers.layer
from lxt_compose import AlphaBeta, Composite, Epsilon, Gamma, RuleError, Stabilizer, ZBox, ZPlus


def relevance(module, x, rule, r, **options):
    x = x.clone().requires_grad_()
    with rule.register(module, **options):
        module(x).backward(r)
    return x.grad


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def expected(layer, x, oracle, r):
    dense = oracles.Dense(layer, x.shape[1:])
    return torch.stack([dense.relevance(oracle, a, b) for a, b in zip(x, r, strict=True)])


# ---- half precision -------------------------------------------------------------------------------------------------

HALF = [
    (AlphaBeta(), oracles.alpha_beta(2.0, 1.0)),
    (AlphaBeta(3.0, 2.0, zero_bias=True), oracles.alpha_beta(3.0, 2.0, bias=0)),
    (ZPlus(), oracles.zplus()),
    (Gamma(3.0, zero_bias=True), oracles.gamma(3.0, bias=0)),
    (ZBox(-4.0, 4.0), oracles.zbox(-4.0, 4.0)),
]


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "nonnegative"])
@pytest.mark.parametrize(("rule", "oracle"), HALF, ids=[str(rule) for rule, _ in HALF])
@pytest.mark.parametrize(("dtype", "distance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str)
def test_half_precision_at_outputs_of_any_sign(dtype, distance, rule, oracle, signed):
    """The output as the model rounds it is not what small sums can be taken from as differences."""
    for seed in range(20):
        torch.manual_seed(seed)
        layer = nn.Linear(16, 8).to(dtype).requires_grad_(False)
        x = seeded(4, 16, seed=seed)
        x = (x if signed else x.relu()).to(dtype)
        r = layer.double()(x.double()).to(dtype)
        wanted = expected(layer, x.double(), oracle, r.double())
        found = relevance(layer.to(dtype), x, rule, r).double()
        assert float((found - wanted).abs().max()) <= distance * float(wanted.abs().max())


@pytest.mark.parametrize(("dtype", "distance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str)
def test_epsilon_without_a_bias_in_half_precision(dtype, distance):
    torch.manual_seed(0)
    layer = nn.Conv1d(3, 4, 3).to(dtype).requires_grad_(False)
    x = seeded(2, 3, 7).to(dtype)
    r = seeded(*layer(x).shape, seed=1).to(dtype)
    stabilizer = torch.finfo(dtype).resolution
    wanted = expected(copy.deepcopy(layer), x.double(), oracles.epsilon(stabilizer, bias=0), r.double())
    found = relevance(layer, x, Epsilon(zero_bias=True), r)
    assert found.dtype == dtype
    assert float((found - wanted).abs().max()) <= distance * float(wanted.abs().max())


# ---- bias ------------------------------------------------------------------------------------------------------------

ALMOST_ALL_BIAS = [
    (Epsilon(1e-9, zero_bias=True), oracles.epsilon(1e-9, bias=0)),
    (Gamma(1.0, zero_bias=True), oracles.gamma(1.0, bias=0)),
    (AlphaBeta(zero_bias=True), oracles.alpha_beta(2.0, 1.0, bias=0)),
    (ZBox(-1e-3, 1e-3), oracles.zbox(-1e-3, 1e-3)),
]


@pytest.mark.parametrize(("rule", "oracle"), ALMOST_ALL_BIAS, ids=[str(rule) for rule, _ in ALMOST_ALL_BIAS])
def test_a_bias_far_above_all_contributions_is_left_out_without_leaving_its_rounding(rule, oracle):
    torch.manual_seed(0)
    layer = nn.Linear(12, 7).requires_grad_(False)
    layer.bias.add_(30.0)
    x = (1e-3 * seeded(5, 12)).float()
    r = seeded(5, 7, seed=1).float()
    wanted = expected(layer, x.double(), oracle, r.double())
    found = relevance(layer.float(), x, rule, r).double()
    assert float((found - wanted).abs().max()) <= 1e-3 * float(wanted.abs().max())


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 0.5


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return (x.unsqueeze(-2) * self.weight).sum(-1) + self.bias


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
@pytest.mark.parametrize("make", [lambda: Halved(6, 4), Written, lambda: nn.Linear(6, 4)], ids=["sub", "own", "torch"])
def test_epsilon_leaves_out_the_bias_of_any_layer_that_is_linear(make, formulation):
    torch.manual_seed(0)
    layer, x = make().double().requires_grad_(False), seeded(3, 6)
    z = layer(x)
    r = seeded(3, 4, seed=1)
    weight, _ = oracles.matrix_of(lambda x: layer(x), (6,))
    contributions = weight * x.unsqueeze(1)
    wanted = (contributions / oracles.signed(contributions.sum(2), 1e-6).unsqueeze(2) * r.unsqueeze(2)).sum(1)
    given = r if formulation == "relevance" else r / z
    found = relevance(layer, x, Epsilon(zero_bias=True), given, formulation=formulation)
    assert_close(found if formulation == "relevance" else found * x, wanted)


@pytest.mark.parametrize("function", [lambda _, x: x.tanh() + 1, lambda _, x: x.relu(), lambda _, x: x * x])
def test_a_bias_of_what_is_not_linear_is_refused(function):
    with pytest.raises(RuleError, match="zero_bias=True knows layers W x \\+ b, and the model itself"):
        relevance(Fn(function), seeded(2, 3), Epsilon(zero_bias=True), torch.ones(2, 3, dtype=torch.float64))


# ---- bounds of pixels -----------------------------------------------------------------------------------------------


def test_zbox_with_bounds_of_each_sample_on_a_batch_that_is_worked_on_in_pieces(monkeypatch):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1).double().requires_grad_(False)
    x = seeded(6, 3, 8, 8)
    low, high = x.amin((1, 2, 3), keepdim=True).expand_as(x), x.amax((1, 2, 3), keepdim=True).expand_as(x)
    r = seeded(6, 4, 8, 8, seed=1)
    wanted = [relevance(layer, x[i : i + 1], ZBox(low[i], high[i]), r[i : i + 1]) for i in range(6)]
    monkeypatch.setattr(lxt_compose.rules.linear_layers.layer, "_PIECE", 4096)
    assert_close(relevance(layer, x, ZBox(low, high), r), torch.cat(wanted))
    assert_close(relevance(layer, x, ZBox(low[:1], 9.0), r)[:1], relevance(layer, x[:1], ZBox(low[0], 9.0), r[:1]))


@pytest.mark.parametrize("kind", [Epsilon, Gamma])
def test_a_stabilizer_that_looks_at_all_samples_sees_all_of_them(monkeypatch, kind):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4).double().requires_grad_(False), seeded(8, 6)
    rule, r = kind(epsilon=Stabilizer(0.5, norm_scale=True, dim=(0,))), seeded(8, 4, seed=1)
    wanted = relevance(layer, x, rule, r)
    monkeypatch.setattr(lxt_compose.rules.linear_layers.layer, "_PIECE", 96)
    assert torch.equal(relevance(layer, x, rule, r), wanted)


def test_bounds_that_do_not_fit():
    with pytest.raises(ValueError, match=r"low and high must broadcast with each other, got shapes \(5,\) and \(4,\)"):
        ZBox(torch.zeros(5), torch.ones(4))
    layer = nn.Sequential(nn.Conv2d(3, 2, 3)).requires_grad_(False)
    message = r"low of ZBox.* must broadcast to the input of conv2d in '0', which has shape \(2, 3, 5, 5\)"
    with Composite({"0": ZBox(torch.zeros(3), 1.0)}).register(layer), pytest.raises(RuleError, match=message):
        layer(torch.rand(2, 3, 5, 5, requires_grad=True))


@pytest.mark.parametrize("value", [nn.Linear(2, 2), nn.Linear], ids=["module", "class"])
def test_a_stabilizer_is_no_module(value):
    with pytest.raises(TypeError, match="epsilon must be a number"):
        Epsilon(value)
