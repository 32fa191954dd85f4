"""Split rules choose their way by the data: in a trace the choice is a part of the graph, with the same numbers."""

import functools

import pytest
import split_rules as eager
import torch
from support import assert_close
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from lxt_compose import (
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Identity,
    Stabilizer,
    WSquare,
    ZBox,
    ZPlus,
    attribute,
    presets,
)
from lxt_compose.rules.linear_layers import branches

RULES = [
    *(pair for pair in eager.RULES if not isinstance(pair[0], Epsilon)),
    (Epsilon(zero_bias=True), eager.oracles.epsilon(bias=0)),
    (AlphaBeta(1.5, 0.5), eager.oracles.alpha_beta(1.5, 0.5)),
]


def explained(model, rule, x, r, formulation="relevance"):
    """The slot of x for the slot r."""
    with Composite({(nn.Linear, nn.modules.conv._ConvNd): rule}, formulation=formulation).register(model):
        x = x.detach().requires_grad_()
        z = model(x)
        (slot,) = torch.autograd.grad(z, x, r)
    return slot


def traced(model, rule, x, r, mode="real", **options):
    function = functools.partial(explained, model, rule, **options)
    return make_fx(function, tracing_mode=mode, _allow_non_fake_inputs=True)(x, r)


def slots(z):
    return torch.randn_like(z), torch.randn_like(z) * z.relu(), torch.zeros_like(z)


def assert_graph_is_right(name, rule, oracle, mode):
    layer, x = eager.layer_and_input(name, "signed", bias=True)
    graph = traced(layer, rule, x, torch.ones_like(layer(x)), mode)
    for kind in ("signed", "non-negative", "zero rows"):
        _, x = eager.layer_and_input(name, kind, seed=1, bias=True)
        for r in slots(layer(x)):
            found, expected = graph(x, r), explained(layer, rule, x, r)
            assert_close(found, eager.expected_relevance(layer, x, r, oracle), 1e-9)
            assert torch.equal(found, expected) or "even" in name  # which autograd differentiates: there is no choice


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("rule", "oracle"), RULES, ids=[str(rule) for rule, _ in RULES])
@pytest.mark.parametrize("name", ["linear", "conv1d, groups, dilation", "conv2d, same, even kernel"])
def test_one_graph_gives_for_any_data_what_the_rule_gives_and_the_oracle(name, rule, oracle):
    assert_graph_is_right(name, rule, oracle, "real")


@pytest.mark.parametrize(("rule", "oracle"), RULES[-1:] + RULES[:1], ids=["AlphaBeta", "Gamma"])
@pytest.mark.parametrize("name", ["linear, three batch dimensions", "conv2d, reflect"])
def test_one_graph_for_all_shapes(name, rule, oracle):
    assert_graph_is_right(name, rule, oracle, "symbolic")


@pytest.mark.parametrize("rule", [Gamma(), ZPlus(), AlphaBeta()], ids=str)
def test_in_the_gradient_formulation_too(rule):
    layer, x = eager.layer_and_input("linear", "signed", bias=True)
    graph = traced(layer, rule, x, torch.ones_like(layer(x)), formulation="gradient")
    for kind in ("signed", "zero rows"):
        _, x = eager.layer_and_input("linear", kind, seed=1, bias=True)
        for r in slots(layer(x)):
            assert torch.equal(graph(x, r), explained(layer, rule, x, r, "gradient"))


@pytest.mark.parametrize(
    "rule", [Gamma(zero_bias=True), AlphaBeta(zero_bias=True), ZBox(-9.0, 9.0), Epsilon(zero_bias=True)], ids=str
)
def test_an_output_that_is_nearly_all_bias_is_computed_without_it_in_a_trace_too(rule):
    torch.manual_seed(0)
    layer = nn.Linear(5, 4).requires_grad_(False)
    x, r = torch.randn(3, 5), torch.randn(3, 4)
    graph = traced(layer, rule, x, r)
    for bias in (1.0, 1e6):
        with torch.no_grad():
            layer.bias.fill_(bias)
        assert torch.equal(graph(x, r), explained(layer, rule, x, r))


@pytest.mark.parametrize("rule", [Gamma(), AlphaBeta()], ids=str)
def test_several_slots_at_a_time(rule):
    layer, x = eager.layer_and_input("linear", "signed", bias=True)
    r = torch.randn(6, *layer(x).shape, dtype=x.dtype)

    def all_of(x, r):
        with Composite({nn.Linear: rule}).register(layer):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(layer(x), x, r, is_grads_batched=True)[0]

    graph = make_fx(all_of)(x, r)
    for values in (x, x.abs()):
        assert_close(graph(values, r), torch.stack([explained(layer, rule, values, each) for each in r]), 1e-9)


@pytest.mark.parametrize("epsilon", [1e-6, Stabilizer(clip=True)], ids=str)
@pytest.mark.parametrize("rule", [Gamma, ZPlus, AlphaBeta, WSquare, Flat], ids=lambda kind: kind.__name__)
def test_a_whole_net_in_one_graph(rule, epsilon):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 2, 6, 6)

    def relevance(x):
        with Composite({(nn.Linear, nn.Conv2d): rule(epsilon=epsilon), nn.ReLU: Identity()}).register(model):
            x = x.detach().requires_grad_()
            y = model(x)
            return torch.autograd.grad(y, x, y.detach())[0]

    graph = make_fx(relevance)(x)
    for other in (x, torch.rand_like(x), torch.randn_like(x)):
        assert torch.equal(graph(other), relevance(other))


def test_a_choice_by_data_is_one_operation_of_the_graph():
    layer, x = eager.layer_and_input("linear", "signed", bias=True)
    graph = traced(layer, Gamma(), x, torch.ones_like(layer(x)))
    assert [node.target.name() for node in graph.graph.nodes if "cond" in node.name] == ["cond"]
    assert branches.is_nonnegative(x) is False  # and is asked at once outside of a trace


@pytest.mark.parametrize("rule", [Gamma(), ZPlus(), AlphaBeta(), Epsilon()], ids=str)
@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_tensors_lie_in_a_graph_as_they_do_without_one(rule, formulation):
    """Products take another kernel, with other last bits, where a tensor lies in another way."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.depth, self.wide = nn.Conv2d(20, 20, 3, padding=1, groups=20), nn.Linear(20, 80)
            self.act, self.narrow, self.head = nn.GELU(), nn.Linear(80, 20), nn.Linear(20, 3)

        def forward(self, x):
            y = self.narrow(self.act(self.wide(self.depth(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
            return self.head((x + y).mean((-2, -1)))

    model, x = Block().eval(), torch.randn(1, 20, 2, 2)
    composite = Composite({(nn.Linear, nn.Conv2d): rule}, formulation=formulation)
    found = composite.trace(model, x, target=0)(x)
    assert torch.equal(found.relevance, attribute(model, x, target=0, composite=composite).relevance)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("preset", ["epsilon_plus", "epsilon_alpha2_beta1", "gamma"])
def test_a_net_of_rectified_layers_asks_for_the_signs_of_its_input_alone(preset, inplace):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Conv2d(4, 4, 3), nn.ReLU(inplace),
              nn.MaxPool2d(2), nn.Conv2d(4, 3, 3), nn.ReLU(inplace), nn.Flatten()]  # fmt: skip
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 2, 10, 10)
    composite = Composite({nn.Conv2d: Gamma()}) if preset == "gamma" else presets.get(preset)
    graph = composite.trace(model, x, target=0)
    signs = [node for node in graph._main.program.graph.graph.nodes if node.name.startswith("lt")]
    assert len(signs) == 1
    nan = torch.randn(2, 2, 10, 10)
    nan[0, 0, 5, 5] = float("nan")
    for other in (x, x.abs(), -x.abs(), torch.zeros_like(x), -0.0 * x, nan):
        found, expected = graph(other).relevance, relevance_of(model, composite, other)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def relevance_of(model, composite, x):
    with composite.register(model):
        x = x.clone().requires_grad_()
        y = model(x)[:, 0]
        return torch.autograd.grad(y, x, y.detach())[0]
