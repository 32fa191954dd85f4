"""Activations that are not 0 at 0: f(0) is a bias, and keeps its share under the identity rule."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Fn, assert_close, attribute
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Family, Identity, default_rules, presets
from lxt_compose import attribute as explain

FORMULATIONS = ("relevance", "gradient")
X = torch.tensor([-9.0, -4.0, -2.5, -1.0, -0.25, 0.25, 0.5, 1.0, 2.5, 4.0, 9.0], dtype=torch.float64)
ABOVE_ZERO = torch.tensor([1e-3, 0.1, 0.5, 0.99, 1.5, 3.0, 1e3], dtype=torch.float64)
INSIDE = torch.tensor([0.01, 0.1, 0.3, 0.7, 0.9, 0.99], dtype=torch.float64)

# the function, where it is expanded, and inputs
FUNCTIONS = {
    "sigmoid": (torch.sigmoid, 0.0, X),
    "expit": (torch.special.expit, 0.0, X),
    "hardsigmoid": (F.hardsigmoid, 0.0, X[X > -3]),
    "softplus": (F.softplus, 0.0, X),
    "softplus 5": (lambda x: F.softplus(x, beta=5.0, threshold=4), 0.0, X),
    "logsigmoid": (F.logsigmoid, 0.0, X),
    "exp": (torch.exp, 0.0, X),
    "exp2": (torch.exp2, 0.0, X),
    "cos": (torch.cos, 0.0, X),
    "cosh": (torch.cosh, 0.0, X),
    "acos": (torch.acos, 0.0, INSIDE),
    "erfc": (torch.erfc, 0.0, X[X < 5]),
    "ndtr": (torch.special.ndtr, 0.0, X[X > -5]),
    "erfcx": (torch.special.erfcx, 0.0, X[X > -4]),
    "i0": (torch.i0, 0.0, X),
    "i0e": (torch.special.i0e, 0.0, X),
    "log_ndtr": (torch.special.log_ndtr, 0.0, X),
    "clamp": (lambda x: x.clamp(0.1, 2), 0.0, X),
    "clamp min": (lambda x: x.clamp(min=torch.tensor(0.1)), 0.0, X),
    "hardtanh": (lambda x: F.hardtanh(x, 0.2, 1.5), 0.0, X),
    "threshold": (lambda x: F.threshold(x, 1.0, 0.5), 0.0, X),
    "log": (torch.log, 1.0, ABOVE_ZERO),
    "log2": (torch.log2, 1.0, ABOVE_ZERO),
    "log10": (torch.log10, 1.0, ABOVE_ZERO),
    "lgamma": (torch.lgamma, 1.0, ABOVE_ZERO),
    "digamma": (torch.digamma, 1.0, ABOVE_ZERO),
    "logit": (torch.logit, 0.5, INSIDE),
    "ndtri": (torch.special.ndtri, 0.5, INSIDE),
    "sinc": (torch.sinc, 0.0, X[X.round() != X]),
}


def passed(f, x, formulation, rules=None):
    """The relevance of x for R = f(x), and the registration's report."""
    leaf = x.clone().requires_grad_()
    with Composite(rules or {}, formulation=formulation).register(Fn(lambda _, x: f(x))) as registration:
        z = registration.model(leaf)
        z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))
    assert registration.report().complete
    return leaf.grad if formulation == "relevance" else leaf.grad * x


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_slope_is_that_of_a_secant(name, formulation):
    """``R_x = R_z / f(x) * x * (f(x) - f(a)) / (x - a)``, for a = 0: ``R_z * (f(x) - f(0)) / f(x)``."""
    f, at, x = FUNCTIONS[name]
    point = torch.full_like(x, at)
    expected = x * (f(x) - f(point)) / (x - at)
    assert expected.isfinite().all()
    assert_close(passed(f, x, formulation), expected, 1e-10)


HALVES = (torch.float16, torch.bfloat16)
NOT_IN_HALF = {"erfcx", "log_ndtr", "ndtri"}  # torch has no kernel for them
DTYPES = [
    (name, dtype)
    for name in FUNCTIONS
    for dtype in (torch.float64, torch.float32, *HALVES)
    if name != "i0e" and not (name in NOT_IN_HALF and dtype in HALVES)  # i0e has a cusp at 0
]


@pytest.mark.parametrize(("name", "dtype"), DTYPES, ids=str)
def test_near_the_point_of_expansion_the_slope_is_the_derivative(name, dtype):
    f, at, _ = FUNCTIONS[name]
    near = [0.0, -0.0, 1e-30, -1e-30, 1e-12, -1e-12, 1e-9, -1e-9, 1e-7, -1e-7, 1e-6]
    leaf = (at + torch.tensor(near, dtype=torch.float64)).to(dtype).requires_grad_()
    with Composite(formulation="gradient").register(Fn(lambda _, x: f(x))) as registration:
        registration.model(leaf).sum().backward()
    point = torch.tensor(at + 1e-12, dtype=torch.float64, requires_grad=True)
    f(point).backward()
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-3}.get(dtype, 2e-2)
    torch.testing.assert_close(leaf.grad.double(), point.grad.expand(len(near)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_relevance_passes_on_request(name):
    f, _, x = FUNCTIONS[name]
    table = {**default_rules("relevance"), Family.ACTIVATION: Identity(zero_bias=True)}
    leaf = x.clone().requires_grad_()
    with Composite(defaults=table).register(Fn(lambda _, x: f(x))) as registration:
        z = registration.model(leaf)
        z.backward(z.detach())
    assert torch.equal(leaf.grad, z.detach())
    assert_close(passed(torch.sigmoid, X, "gradient", {torch.sigmoid: Identity(zero_bias=True)}), torch.sigmoid(X))
    assert str(Identity()) == "Identity()"
    assert str(Identity(zero_bias=True)) == "Identity(zero_bias=True)"


def test_a_root_has_no_point_with_a_slope():
    """acosh(1 + h) grows as a root: all of its relevance passes."""
    x = torch.tensor([1.0 + 1e-9, 2.0, 5.0], dtype=torch.float64)
    for formulation in FORMULATIONS:
        assert_close(passed(torch.acosh, x, formulation), torch.acosh(x))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_inverse_functions_are_the_identity_together(formulation):
    for f in (lambda x: x.exp().log(), lambda x: x.sigmoid().logit(), lambda x: torch.exp2(x).log2()):
        assert_close(passed(f, X, formulation), X, 1e-7)


def test_an_output_of_zero_passes_nothing():
    x = torch.tensor([-5.0, -3.0, -2.9], dtype=torch.float64)
    for formulation in FORMULATIONS:
        found = passed(F.hardsigmoid, x, formulation)
        assert found[:2].tolist() == [0, 0]
        assert_close(found[2:], x[2:] / 6)


# ---- networks --------------------------------------------------------------------------------------------------------

# with the largest slope of a secant through f(0)
BOUNDS = {
    nn.Sigmoid: 0.25, nn.Softplus: 1.0, nn.LogSigmoid: 1.0, nn.Hardsigmoid: 1 / 6, nn.Tanh: 1.0, nn.ReLU: 1.0
}  # fmt: skip


def network(kind, seed, width=5, depth=4):
    torch.manual_seed(seed)
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), kind())]
    return nn.Sequential(*layers, nn.Linear(width, 1)).double().requires_grad_(False)


@pytest.mark.parametrize("keyed", [False, True], ids=["default", "key"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("kind", BOUNDS, ids=lambda kind: kind.__name__)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_relevance_is_bounded_by_weights_and_slopes(kind, formulation, keyed, seed, scale):
    """``|R_x| <= |x| * |W_1|^T L |W_2|^T L ... |w|`` for an output of relevance z; each activation adds a factor L."""
    net = network(kind, seed)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    composite = presets.attnlrp({kind: Identity()} if keyed else {}, formulation=formulation)
    found = attribute(net, x, composite)
    bound = net[-1].weight.abs()
    for layer in net[-3::-2]:
        bound = BOUNDS[kind] * bound @ layer.weight.abs()
    assert (found.abs() <= x.abs() * bound * (1 + 1e-6) + 1e-12).all()


@pytest.mark.parametrize("kind", [nn.Sigmoid, nn.Softplus, nn.Hardsigmoid, nn.LogSigmoid])
@pytest.mark.parametrize("preset", ["attnlrp", "epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "gamma_vit", "relp"])
def test_hidden_layers_do_not_explode(kind, preset):
    """Without the bias these were 1e3 to 1e28 times the output."""
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 8, 3), kind(), nn.Conv2d(8, 8, 3), kind(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net = nn.Sequential(*parts, nn.Linear(8, 4)).double()
    x = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = explain(net, x, target=1, composite=preset)
    assert result.report.complete
    size = result.relevance.abs().flatten(1).sum(1) / result.output.abs()
    assert float(size.max()) < 10


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_constant_may_stand_in_the_activation_or_in_the_bias_of_the_next_layer(formulation):
    """``sigmoid(x) = 1/2 + tanh(x / 2) / 2``: the two nets are one function, and have one relevance."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)).double()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight /= 2
        other[0].bias /= 2
        other[2].weight /= 2
        other[2].bias += net[2].weight.sum(1) / 2
    other[1] = nn.Tanh()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    composite = presets.attnlrp(formulation=formulation)
    assert_close(other(x), net(x))
    assert_close(attribute(other, x, composite), attribute(net, x, composite), 1e-7)


# ---- modules of one's own --------------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """Not 0 at 0; with a count of its calls."""

    def __init__(self):
        super().__init__()
        self.shift, self.calls = nn.Parameter(torch.tensor(1.5)), 0

    def forward(self, x):
        self.calls += 1
        return torch.sigmoid(x) + self.shift * torch.cos(x)


class PerChannel(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]))

    def forward(self, x):
        return torch.cos(x) + self.shift


class WithChild(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return self.relu(x + 3) / 6


@pytest.mark.parametrize("keyed", [False, True], ids=["default", "key"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("kind", [Shifted, PerChannel, WithChild])
def test_modules_are_evaluated_at_zero(kind, formulation, keyed):
    if not keyed and kind is not Shifted:
        kind = Shifted  # the others are taken apart into their steps
    activation = kind().double().requires_grad_(False)
    model = nn.Sequential(nn.Identity(), activation)
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3)
    composite = Composite({kind: Identity()} if keyed else {}, formulation=formulation)
    for _ in range(2):
        expected = (activation(x) - activation(torch.zeros_like(x))).detach()
        calls = getattr(activation, "calls", 0)
        assert_close(attribute(model, x, composite), expected, 1e-8)
        assert getattr(activation, "calls", 1) == calls + 1  # a copy of it was evaluated
        if kind is not WithChild:
            with torch.no_grad():
                activation.shift.mul_(2)  # as a step of training does


def test_modules_that_are_not_elementwise_pass_all(recwarn):
    """For a normalization under Identity, as in LXT, there is no f(0) of one element."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(4).double()
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, dtype=torch.float64)
    for block in (norm, nn.Softmax(-1), nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double()):
        found = attribute(nn.Sequential(block), x, Composite({"0": Identity()}))
        assert_close(found, block(x).detach())


def test_hooks_of_the_user_do_not_run_once_more():
    met = []
    activation = Shifted().double()
    activation.register_forward_hook(lambda *_: met.append(1))
    attribute(nn.Sequential(activation), X[:, None], Composite())
    assert len(met) == 1
    assert math.isfinite(float(activation.shift))
