"""Presets for image models against their rules written slowly: dense matrices, layer by layer, in float64."""

import pytest
import torch
from support import Fn, Transformer, assert_close, fingerprint
from torch import nn
from torch.nn import functional as F

from lxt_compose import (
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Pass,
    ReLUGuidedBackprop,
    ZBox,
    ZPlus,
    attribute,
    first_layer,
    presets,
)
from lxt_compose.canonizers.merge_batch_norm import MergeBatchNorm
from lxt_compose.ops import module_types as kinds

SIDE = 4
LOW, HIGH = -1.5, 2.0


class Net(nn.Module):
    """Two convolutions and two dense layers; what is registered first is not what the input reaches first."""

    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(3, 2, 2)
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.head, self.hidden = nn.Linear(5, 3), nn.Linear(2 * 3 * 3, 5)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.first(x))
        x = torch.relu(self.second(x)).flatten(1)
        return self.head(F.relu(self.hidden(x)))


LAYERS = ("first", "second", "hidden", "head")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double().eval()


@pytest.fixture
def x():
    return torch.randn(1, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).clamp(
        LOW, HIGH
    )


def dense(layer, shape):
    """The weight [outputs, inputs] and bias [outputs] of a layer as one matrix, probed input by input."""
    with torch.no_grad():
        bias = layer(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64)
        return torch.stack([layer(one.reshape(1, *shape)).flatten() - bias for one in basis], 1), bias


def shares(kind, weight, bias, x):
    """What fraction of the relevance of output j goes to input i: a matrix [outputs, inputs]; the papers' equations."""
    c = weight * x

    def fraction(parts, total):
        return parts / (total + torch.where(total >= 0, 1e-6, -1e-6))[:, None]

    plus, minus = c.clamp(min=0), c.clamp(max=0)
    if kind == "epsilon":
        return fraction(c, c.sum(1) + bias)
    if kind == "plus":
        return fraction(plus, plus.sum(1) + bias.clamp(min=0))
    if kind == "plus, no bias":
        return fraction(plus, plus.sum(1))
    if kind == "alpha2 beta1":
        up = fraction(plus, plus.sum(1) + bias.clamp(min=0))
        return 2 * up - fraction(minus, minus.sum(1) + bias.clamp(max=0))
    if kind == "flat":
        fed = (weight != 0).double()
        return fraction(fed, fed.sum(1))
    if kind == "box":
        parts = c - LOW * weight.clamp(min=0) - HIGH * weight.clamp(max=0)
        return fraction(parts, parts.sum(1))
    gamma = float(kind)
    up = (c.sum(1) + bias >= 0)[:, None]
    parts = c + gamma * torch.where(up, plus, minus)
    same = torch.where(up[:, 0], bias.clamp(min=0), bias.clamp(max=0))
    return fraction(parts, parts.sum(1) + bias + gamma * same)


def explained_slowly(net, x, shared_by, start):
    """Relevance of x, layer by layer from the top, where ReLU passes it on."""
    values, matrices, value = [], [], x
    for name in LAYERS:
        layer = getattr(net, name)
        if isinstance(layer, nn.Linear):
            value = value.flatten(1)
        values.append(value)
        matrices.append(dense(layer, value.shape[1:]))
        with torch.no_grad():
            value = layer(value).relu()
    relevance = start.flatten()
    for kind, value, (weight, bias) in zip(shared_by[::-1], values[::-1], matrices[::-1], strict=True):
        relevance = shares(kind, weight, bias, value.flatten()).T @ relevance
    return relevance.reshape(x.shape)


def explained(model, x, composite, start):
    """What a composite gives for the relevance `start` of the output."""
    x = x.clone().requires_grad_()
    with composite.register(model) as registration:
        y = model(x)
        relevance = composite.formulation == "relevance"
        (found,) = torch.autograd.grad(y, x, start if relevance else start / y.detach())
        report = registration.report()
    return found if relevance else found * x.detach(), report


KINDS = {
    "epsilon": ({}, ("epsilon", "epsilon", "epsilon", "epsilon")),
    "epsilon_plus": ({}, ("plus", "plus", "epsilon", "epsilon")),
    "epsilon_alpha2_beta1": ({}, ("alpha2 beta1", "alpha2 beta1", "epsilon", "epsilon")),
    "epsilon_plus_flat": ({}, ("flat", "plus", "epsilon", "epsilon")),
    "epsilon_alpha2_beta1_flat": ({}, ("flat", "alpha2 beta1", "epsilon", "epsilon")),
    "epsilon_gamma_box": ({"low": LOW, "high": HIGH}, ("box", "0.25", "epsilon", "epsilon")),
    "gamma_vit": ({"conv_gamma": 0.5, "linear_gamma": 0.1}, ("0.5", "0.5", "0.1", "0.1")),
    "excitation_backprop": ({}, ("plus, no bias",) * 4),
}


@pytest.mark.parametrize("name", KINDS)
def test_against_the_rules_written_slowly(net, x, name):
    options, shared_by = KINDS[name]
    start = torch.tensor([[0.7, -0.4, 1.1]], dtype=torch.float64)
    plain, before = net(x), fingerprint(net)
    composite = presets.get(name, **options)
    found, report = explained(net, x, composite, start)
    assert_close(found, explained_slowly(net, x, shared_by, start), 1e-8)
    assert report.complete
    assert fingerprint(net) == before
    assert torch.equal(net(x), plain)


def test_every_image_preset_is_tested_here():
    assert {*KINDS, "guided_backprop", "deconvnet", "beta_smooth"} == set(presets.IMAGES)
    assert set(presets.IMAGES) <= set(presets.available())


@pytest.mark.parametrize("name", ["epsilon_plus_flat", "epsilon_alpha2_beta1_flat", "epsilon_gamma_box"])
def test_the_first_layer_is_the_one_the_input_reaches_first(net, x, name):
    _, report = explained(net, x, presets.get(name, **KINDS[name][0]), torch.ones(1, 3, dtype=torch.float64))
    rules = {row.path: row.rule.partition("(")[0] for row in report.rows if row.kind == "module"}
    keys = {row.path: row.key for row in report.rows}
    special = "ZBox" if "box" in name else "Flat"
    assert keys["first"] == "first_layer"
    assert [row.rule.partition("(")[0] for row in report.rows if row.key == "first_layer"] == [special]
    assert rules["second"] != special


def test_excitation_backprop_conserves_from_layer_to_layer(net):
    x = torch.rand(1, 2, SIDE, SIDE, dtype=torch.float64)
    for layer in (net.first, net.second, net.hidden, net.head):
        nn.init.uniform_(layer.weight, 0.1, 1)  # every neuron has an excitatory input
    start = torch.softmax(net(x), 1)
    found, _ = explained(net, x, presets.excitation_backprop(), start)
    assert found.sum().item() == pytest.approx(1, abs=1e-5)
    assert (found >= 0).all()
    certain = torch.eye(3, dtype=torch.float64)[None, 1].expand(len(x), 3)
    expected, _ = explained(net, x, presets.excitation_backprop(), certain)
    assert_close(attribute(net, x, target=1, composite="excitation_backprop").relevance, expected, 1e-12)
    with_bias, _ = explained(net, x, presets.excitation_backprop(zero_bias=False), start)
    assert with_bias.sum().item() < 1 - 1e-4


def backward_slowly(net, x, start, relu):
    """The gradient, layer by layer, with `relu(slot, value)` in place of the derivative of ReLU."""
    value, steps = x, []
    for name in LAYERS:
        layer = getattr(net, name)
        if isinstance(layer, nn.Linear):
            value = value.flatten(1)
        weight, _ = dense(layer, value.shape[1:])
        with torch.no_grad():
            z = layer(value)
        steps.append((weight, z.flatten()))
        value = z.relu()
    slot = start.flatten()
    for number, (weight, z) in enumerate(steps[::-1]):
        slot = weight.T @ (relu(slot, z) if number else slot)
    return slot.reshape(x.shape)


@pytest.mark.parametrize(
    ("name", "relu"),
    [
        ("guided_backprop", lambda slot, z: slot.clamp(min=0) * (z > 0)),
        ("deconvnet", lambda slot, z: slot.clamp(min=0)),
        ("beta_smooth", lambda slot, z: slot / (1 + (-10.0 * z).exp())),
    ],
)
def test_gradients_with_another_relu(net, x, name, relu):
    x = x.clone().requires_grad_()
    with presets.get(name).register(net) as registration:
        y = net(x)
        y[:, 0].sum().backward()
        report = registration.report()
    start = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    expected = backward_slowly(net, x.detach(), start, relu)
    assert_close(x.grad, expected, 1e-12)
    found = attribute(net, x.detach(), target=0, composite=name, layers="first:input")
    assert_close(found.relevance, expected, 1e-12)
    assert_close(found.latent["first:input"], expected, 1e-12)
    assert report.complete
    assert sum(row.calls for row in report.rows if row.target == "relu" and row.status == "ruled") == 3


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet", "beta_smooth"])
def test_gradient_presets_leave_all_else_to_the_plain_gradient_and_say_so(name):
    torch.manual_seed(0)
    model = Transformer().double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    with presets.get(name).register(model) as registration:
        (found,) = torch.autograd.grad(model(x).sum(), x)
        report = registration.report()
    assert_close(found, expected, 1e-12)
    assert not report.complete
    assert {"softmax", "gelu", "layer_norm"} <= {row.target for row in report.uncovered}


class Swish(nn.Module):
    """An activation written out, which the table of defaults would take as a unit under Identity."""

    def forward(self, x):
        return x * torch.sigmoid(x)


def test_written_out_activations_pass_their_plain_gradient_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Swish(), nn.ReLU(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    nn.init.uniform_(model[3].weight)  # all that comes to the ReLU is positive, so that guided is the plain gradient
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    with presets.guided_backprop().register(model) as registration:
        (found,) = torch.autograd.grad(model(x).sum(), x)
        report = registration.report()
    assert_close(found, expected, 1e-12)
    assert {row.target for row in report.uncovered} == {"sigmoid", "mul"}


def test_gamma_vit_is_attnlrp_but_for_its_layers():
    torch.manual_seed(0)
    model = Transformer().double().eval()
    x, start = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    found, report = explained(model, x, presets.gamma_vit(linear_gamma=0.05), start)
    expected, _ = explained(model, x, presets.attnlrp({nn.Linear: Gamma(0.05)}), start)
    assert_close(found, expected, 1e-12)
    assert report.complete
    both, _ = explained(model, x, presets.gamma_vit(linear_gamma=0.05, formulation="relevance"), start)
    assert_close(both, found, 1e-4)
    none, _ = explained(model, x, presets.gamma_vit(0.0, 0.0), start)
    attnlrp, _ = explained(model, x, presets.attnlrp(), start)
    assert_close(none, attnlrp, 1e-4)


def test_rules_of_ones_own_go_first_and_options_reach_the_composite(net, x):
    start = torch.ones(1, 3, dtype=torch.float64)
    own = {"second": Epsilon(0.5), first_layer: Gamma(1.0)}
    found, _ = explained(net, x, presets.epsilon_plus_flat(own), start)
    expected, _ = explained(
        net, x, Composite({"second": Epsilon(0.5), "first": Gamma(1.0), nn.Linear: Epsilon(1e-6)}), start
    )
    assert_close(found, expected, 1e-12)
    composite = presets.epsilon_plus(canonizers=[MergeBatchNorm()], strict=True)
    assert (composite.canonizers, composite.strict) == ((MergeBatchNorm(),), True)


def test_with_batch_norms_merged():
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3)]
    model = nn.Sequential(*parts).double()
    for norm in (model[1], model[5]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    model.eval()
    merged = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        for layer, norm, into in ((model[0], model[1], merged[0]), (model[4], model[5], merged[3])):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            into.weight.copy_(layer.weight * scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
            into.bias.copy_((layer.bias - norm.running_mean) * scale + norm.bias)
    x, start = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    for name, (options, _) in KINDS.items():
        found, report = explained(model, x, presets.get(name, **options, canonizers=[MergeBatchNorm()]), start)
        expected, _ = explained(merged, x, presets.get(name, **options), start)
        assert_close(found, expected, 1e-9)
        assert report.notes == ("batch norms merged: 0 + 1; 4 + 5",)
    _, report = explained(model, x, presets.epsilon_plus(), start)
    assert "canonizers=[MergeBatchNorm()] explains both as one" in report.notes[0]
    _, report = explained(model, x, presets.epsilon_plus({(nn.BatchNorm1d, nn.BatchNorm2d): Pass()}), start)
    assert report.notes == ()


def test_what_the_composites_are():
    rules = {name: [entry.rule for entry in presets.get(name, **KINDS[name][0]).assignments] for name in KINDS}
    assert rules["epsilon_plus"] == [ZPlus(), Epsilon()]
    assert rules["epsilon_alpha2_beta1_flat"] == [Flat(), AlphaBeta(2, 1), Epsilon()]
    assert rules["epsilon_gamma_box"] == [ZBox(LOW, HIGH), Gamma(0.25), Epsilon()]
    assert [entry.rule for entry in presets.guided_backprop().assignments] == [ReLUGuidedBackprop()]
    assert presets.gamma_vit().formulation == "gradient"
    assert presets.epsilon().formulation == "relevance"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("epsilon", {"epsilon": -1.0}, "epsilon must be"),
        ("epsilon_gamma_box", {"low": 1, "high": 0}, "low must not be above high"),
        ("gamma_vit", {"conv_gamma": -1.0}, "gamma must be"),
        ("beta_smooth", {"beta": 0.0}, "beta must be above 0"),
        ("epsilon_plus", {"formulation": "relevant"}, "formulation must be one of"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        presets.get(name, **options)


def test_groups_of_kinds_are_keys():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2), nn.ConvTranspose2d(2, 2, 2)
    )
    rules = [(kinds.CONVOLUTIONS, ZPlus()), (kinds.BATCH_NORMS, Pass()), (kinds.ACTIVATIONS, Pass())]
    rules += [(kinds.AVERAGE_POOLS, Flat()), (kinds.LAYERS, Gamma())]
    with Composite(rules).register(model.eval()) as registration:
        bound = {row.path: row.rule for row in registration.report().rows}
    assert bound == {"0": "ZPlus()", "1": "Pass()", "2": "Pass()", "3": "Flat()", "4": "ZPlus()"}


class Attention(nn.Module):
    """The same as ``nn.MultiheadAttention`` of one head, with layers of its own."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        m = self.module
        q, k, v = F.linear(x, m.in_proj_weight, m.in_proj_bias).chunk(3, -1)
        return F.linear(F.scaled_dot_product_attention(q, k, v), m.out_proj.weight, m.out_proj.bias)


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_projections_inside_attention_take_keys_of_functions(formulation):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 1, batch_first=True).double().eval()
    nn.init.normal_(module.in_proj_bias)
    model, x = Fn(lambda self, x: self.m(x, x, x, need_weights=False)[0], m=module), torch.randn(2, 5, 8).double()
    composite = Composite({F.linear: Gamma(0.3)}, formulation=formulation, strict=True)
    with composite.register(model) as registration:
        model(x.clone().requires_grad_())
        rules = {row.target: (row.rule, row.key, row.calls) for row in registration.report().rows}
    assert rules["linear"] == (str(Gamma(0.3)), "F.linear", 2)
    first, second = (attribute(m, x, target=total, composite=composite) for m in (model, Attention(module)))
    assert_close(first.relevance, second.relevance, 1e-5)
    plain = attribute(model, x, target=total, composite=Composite(formulation=formulation)).relevance
    assert (first.relevance - plain).abs().max() > 0.01 * plain.abs().max()


def total(output):
    return output.sum((1, 2))


def test_gamma_vit_reaches_the_projections_of_attention():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).double().eval()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    report = attribute(model, x, target=total, composite=presets.gamma_vit(linear_gamma=0.1)).report
    ruled = {row.path: row.calls for row in report.rows if row.rule == str(Gamma(0.1))}
    assert ruled == {"self_attn": 2, "linear1": 1, "linear2": 1}
