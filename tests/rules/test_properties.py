"""Properties that hold for any input: what is conserved, what is the same, what stays finite, half precision."""

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Fn, assert_close
from torch import nn
from torch.nn import functional as F

from lxt_compose import (
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Identity,
    Pass,
    Ratio,
    ReLUBetaSmooth,
    ResidualGamma,
    SignalTakesAll,
    Stop,
    TaylorDecomposition,
    Uniform,
    UniformEpsilon,
    ValueAttention,
    WSquare,
    ZBox,
    ZPlus,
)

LAYER_RULES = [
    Epsilon(), Epsilon(zero_bias=True), Gamma(), Gamma(0.0), Gamma(10.0), AlphaBeta(), AlphaBeta(1.0, 0.0), ZPlus(),
    ZBox(-4.0, 4.0), WSquare(), Flat(), TaylorDecomposition(),
]  # fmt: skip
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
seeds = st.integers(0, 10_000)
thorough = settings(max_examples=25, deadline=None, derandomize=True)


def draw(seed, *, conv=False, bias=True, signed=True, scale=1.0, dtype=torch.float64):
    """A layer, an input and a relevance of its output."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layer = nn.Conv1d(2, 3, 2, padding=1, bias=bias) if conv else nn.Linear(4, 3, bias=bias)
    x = torch.randn((2, 2, 4) if conv else (2, 4), generator=generator, dtype=torch.float64) * scale
    x = x if signed else x.relu()
    layer = layer.double().requires_grad_(False)
    r = torch.randn(layer(x).shape, generator=generator, dtype=torch.float64)
    return layer.to(dtype), x.to(dtype), r.to(dtype)


def relevance(module, x, rule, r):
    x = x.clone().requires_grad_()
    with rule.register(module):
        module(x).backward(r)
    return x.grad


def totals(rule, dense, x):
    """What a rule divides by: the weight of each part, the sum of its contributions, and the bias in it."""
    c, b = dense.weight * x, dense.bias
    z = c.sum(1) + b
    sign = torch.where(z >= 0, 1.0, -1.0).to(z)

    def same(value):
        return torch.where(value * (sign if value.dim() == 1 else sign[:, None]) > 0, value, 0)

    if isinstance(rule, Epsilon):
        return [(1.0, c.sum(1), 0 * b if rule.zero_bias else b)]
    if isinstance(rule, Gamma):
        return [(1.0, c.sum(1) + rule.gamma * same(c).sum(1), b + rule.gamma * same(b))]
    if isinstance(rule, (AlphaBeta, ZPlus)):
        alpha, beta = (rule.alpha, rule.beta) if isinstance(rule, AlphaBeta) else (1.0, 0.0)
        return [(alpha, c.clamp(min=0).sum(1), b.clamp(min=0)), (-beta, c.clamp(max=0).sum(1), b.clamp(max=0))]
    if isinstance(rule, ZBox):
        least = rule.low * dense.weight.clamp(min=0) + rule.high * dense.weight.clamp(max=0)
        return [(1.0, (c - least).sum(1), 0 * b)]
    if isinstance(rule, WSquare):
        return [(1.0, dense.weight.square().sum(1), b.square())]
    return [(1.0, dense.fed.sum(1), 0 * b)]


@pytest.mark.parametrize("rule", [r for r in LAYER_RULES if not isinstance(r, TaylorDecomposition)], ids=str)
@thorough
@given(seeds, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([1e-3, 1.0, 1e3]))
def test_relevance_is_conserved_up_to_the_bias_and_the_stabilizer(rule, seed, conv, bias, signed, scale):
    """``sum R_in = sum_j R_j * (contributions_j / stabilized(contributions_j + bias_j))``: nothing else is lost."""
    layer, x, r = draw(seed, conv=conv, bias=bias, signed=signed, scale=scale)
    found = relevance(layer, x, rule, r)
    for i in range(len(x)):
        dense = oracles.Dense(layer, (1, *x.shape[1:]))
        parts = totals(rule, dense, x[i].flatten())
        wanted = sum(w * (c / oracles.signed(c + b) * r[i].flatten()).sum() for w, c, b in parts if w)
        assert abs(float(found[i].sum() - wanted)) <= 1e-8 * (1 + float(found[i].abs().sum()))


@thorough
@given(seed=seeds, conv=st.booleans(), signed=st.booleans())
def test_rules_that_are_special_cases_of_others(seed, conv, signed):
    layer, x, r = draw(seed, conv=conv, signed=signed)
    for special, general in (
        (ZPlus(), AlphaBeta(1.0, 0.0)),
        (Epsilon(), Gamma(0.0)),
        (Epsilon(), TaylorDecomposition(None)),
        (Epsilon(), UniformEpsilon()),
    ):
        assert_close(relevance(layer, x, special, r), relevance(layer, x, general, r), 1e-9)
    # where all outputs are positive, gamma without bound leaves the positive contributions alone
    above = r * (layer(x) > 0)
    assert_close(relevance(layer, x, Gamma(1e9), above), relevance(layer, x, ZPlus(), above), 1e-3)


@pytest.mark.parametrize("rule", [*LAYER_RULES, UniformEpsilon()], ids=str)
@thorough
@given(seed=seeds, conv=st.booleans(), power=st.integers(-20, 20))
def test_relevance_is_linear_in_the_relevance_it_starts_with(rule, seed, conv, power):
    """Twice the relevance of the output is exactly twice that of the input; a sum of two is the sum of both."""
    layer, x, r = draw(seed, conv=conv)
    other = r.flip(0)
    found = relevance(layer, x, rule, r)
    assert torch.equal(relevance(layer, x, rule, r * 2.0**power), found * 2.0**power)
    assert not relevance(layer, x, rule, torch.zeros_like(r)).any()
    assert_close(relevance(layer, x, rule, r + other), found + relevance(layer, x, rule, other), 1e-9)


@pytest.mark.parametrize("rule", [WSquare(), Flat(), WSquare(zero_bias=True)], ids=str)
@thorough
@given(seed=seeds, conv=st.booleans(), other=st.sampled_from([0.0, -3.0, 1e30, float("inf")]))
def test_rules_that_do_not_look_at_the_input(rule, seed, conv, other):
    layer, x, r = draw(seed, conv=conv)
    assert torch.equal(relevance(layer, x, rule, r), relevance(layer, torch.full_like(x, other), rule, r))


numbers = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e-300, 1e300, -1e300, 1e-160, -1e-160])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(a=numbers, b=numbers, close=st.booleans(), gamma=st.sampled_from([0.05, 0.5, 1.0, 3.0]))
def test_shares_of_residual_gamma_add_up_and_are_bounded(a, b, close, gamma):
    """They sum to 1 and lie within ``[-1/gamma, 1 + 1/gamma]``, also where both parts all but cancel each other."""
    b = -a * (1 + 1e-15 * (b % 100)) if close else b
    leaves = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (a, b)]
    with Composite({torch.add: ResidualGamma(gamma)}).register(model := Fn(lambda _, x, y: x + y)):
        model(*leaves).backward(torch.ones(1, dtype=torch.float64))
    shares = [float(leaf.grad) for leaf in leaves]
    assert abs(sum(shares) - 1) <= 1e-12 * (1 + 1 / gamma)
    assert all(-1 / gamma - 1e-9 <= share <= 1 + 1 / gamma + 1e-9 for share in shares)


# ---- extremes ------------------------------------------------------------------------------------------------------


def special(dtype):
    """Zeros, numbers too small for the dtype's full precision, and large ones, whose products are finite still."""
    info = torch.finfo(dtype)
    large, tiny = info.max**0.5 / 16, info.tiny
    return st.sampled_from([0.0, -0.0, tiny, -tiny, tiny / 4, -tiny / 4, 1.0, -1.0, large, -large])


def start(z, formulation):
    """As a network has it: relevance that is no larger than what it explains, or 1."""
    r = z.detach().clamp(-1, 1)
    return r if formulation == "relevance" else torch.where(z == 0, 1, r / z.detach())


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", LAYER_RULES, ids=str)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_layers_stay_finite(rule, dtype, formulation, data):
    if formulation not in rule.formulations:
        return
    values = [data.draw(special(dtype)) for _ in range(7)]
    layer = nn.Linear(3, 1).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([values[:3]], dtype=torch.float64)), layer.bias.fill_(values[3])
    x = torch.tensor([values[4:7], [0.0] * 3], dtype=torch.float64).to(dtype).requires_grad_()
    with Composite({nn.Linear: rule}, formulation=formulation).register(layer):
        z = layer(x)
        z.backward(start(z, formulation))
    assert torch.isfinite(z).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_sums_and_products_stay_finite(dtype, formulation, data):
    drawn = [[data.draw(special(dtype)) for _ in range(2)] for _ in "ab"]
    a, b = (torch.tensor([row], dtype=torch.float64).to(dtype).requires_grad_() for row in drawn)
    for function, rule in (
        (torch.add, ResidualGamma()), (torch.add, Epsilon()), (torch.mul, Uniform()), (torch.matmul, UniformEpsilon()),
    ):  # fmt: skip
        model = Fn(lambda _, x, y, f=function: f(x, y.mT if f is torch.matmul else y))
        with Composite({function: rule}, formulation=formulation).register(model):
            z = model(a, b)
            assert all(torch.isfinite(g).all() for g in torch.autograd.grad(z, [a, b], start(z, formulation)))
    for function, rule in ((torch.sigmoid, Ratio()), (torch.tanh, Identity()), (torch.tanh, Pass()), (F.silu, Ratio())):
        with Composite({function: rule}, formulation=formulation).register(model := Fn(lambda _, x, f=function: f(x))):
            z = model(a)
            assert torch.isfinite(torch.autograd.grad(z, a, start(z, formulation))[0]).all()


# ---- half precision ------------------------------------------------------------------------------------------------

# The largest distance from float64 as a part of the largest relevance, for a small ReLU network whose weights and input
# are exactly representable. Split rules compute in float32 inside; Epsilon divides in the dtype itself.
DISTANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


def relu_net(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    return net.to(torch.bfloat16).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", DISTANCE, ids=str)
@pytest.mark.parametrize("rule", LAYER_RULES, ids=str)
def test_half_precision_is_within_its_distance_of_float64(rule, dtype):
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    found = []
    for kind in (torch.float64, dtype):
        same_stabilizer = Epsilon(torch.finfo(dtype).resolution, getattr(rule, "zero_bias", False))
        given_rule = same_stabilizer if isinstance(rule, (Epsilon, TaylorDecomposition)) else rule
        leaf = x.to(kind).requires_grad_()
        with Composite({nn.Linear: given_rule, nn.ReLU: Identity()}).register(net := relu_net(kind)):
            y = net(leaf)
            chosen = torch.zeros_like(y)
            chosen[:, 0] = 1
            y.backward(chosen)
        found.append(leaf.grad.double())
    exact, half = found
    # Neurons that are active by their bias alone divide by next to nothing when it is left out.
    distance = DISTANCE[dtype] * (10 if getattr(rule, "zero_bias", False) else 1)
    assert float((half - exact).abs().max()) <= distance * float(exact.abs().max())


# In the gradient formulation nothing is divided by an output: no stabilizer, only the rounding of the dtype is left.
OPERATIONS = {
    "sum of two": (torch.add, {torch.add: ResidualGamma()}, 2),
    "product": (torch.mul, {}, 2),
    "matmul": (lambda a, b: a @ b.mT, {}, 2),
    "gate": (lambda a, b: a * F.silu(b), {torch.mul: SignalTakesAll(0.0)}, 2),
    "softmax": (lambda a: torch.softmax(a, -1), {}, 1),
    "layer norm": (lambda a: F.layer_norm(a, a.shape[-1:]), {}, 1),
    "rms norm": (lambda a: F.rms_norm(a, a.shape[-1:]), {}, 1),
    "group norm": (lambda a: F.group_norm(a, 4), {}, 1),
    "gelu": (F.gelu, {}, 1),
    "tanh by its ratio": (torch.tanh, {torch.tanh: Ratio()}, 1),
    "tanh passed": (torch.tanh, {torch.tanh: Pass()}, 1),
    "smooth relu": (torch.relu, {torch.relu: ReLUBetaSmooth()}, 1),
    "attention": (F.scaled_dot_product_attention, {}, 3),
    "value attention": (
        F.scaled_dot_product_attention, {F.scaled_dot_product_attention: ValueAttention(0.0)}, 3
    ),
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "distance"), [(torch.float32, 2e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_half_precision_of_operations(name, dtype, distance):
    function, rules, count = OPERATIONS[name]
    inputs = [x.to(torch.bfloat16) for x in torch.randn(count, 8, 16, generator=torch.Generator().manual_seed(0))]
    found = []
    for kind in (torch.float64, dtype):
        leaves = [x.to(kind).requires_grad_() for x in inputs]
        with Composite(rules, formulation="gradient").register(model := Fn(lambda _, *xs: function(*xs))):
            z = model(*leaves)
        start = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(kind)
        slots = torch.autograd.grad(z, leaves, start, materialize_grads=True)
        found.append(torch.stack([g.double() * x.detach().double() for g, x in zip(slots, leaves, strict=True)]))
    exact, half = found
    assert float((half - exact).abs().max()) <= distance * float(exact.abs().max())


@pytest.mark.filterwarnings("ignore:no input of Fn gets any relevance")
def test_stop_gives_nothing():
    x = torch.randn(3, requires_grad=True)
    with Composite({torch.tanh: Stop()}).register(model := Fn(lambda _, x: torch.tanh(x))):
        model(x).sum().backward()
    assert not x.grad.any()
