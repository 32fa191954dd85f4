"""Epsilon acts as it was asked for, down to the smallest normal number of each dtype, and relevance stays finite."""

import dataclasses

import pytest
import torch
from support import Fn, both_formulations
from torch import nn
from torch.nn import functional as F

from lxt_compose import (
    AlphaBeta,
    Attention,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    GatedEpsilon,
    Homogeneous,
    Rule,
    SignalTakesAll,
    Stabilizer,
    TaylorDecomposition,
    UniformEpsilon,
    ValueAttention,
    WSquare,
    ZBox,
    ZPlus,
)
from lxt_compose import functional as lf
from lxt_compose import modules as lm
from lxt_compose.autograd.numerics import EPSILON, DefaultEpsilon, over_positive, over_stabilized
from lxt_compose.lxt.rules import EpsilonRule

HALF = [torch.float16, torch.bfloat16]
DTYPES = [torch.float64, torch.float32, *HALF]
RULES = {
    "Epsilon": Epsilon,
    "Epsilon, no bias": lambda e: Epsilon(e, zero_bias=True),
    "Gamma": lambda e: Gamma(0.5, e),
    "Gamma 0": lambda e: Gamma(0.0, e),
    "AlphaBeta": lambda e: AlphaBeta(2.0, 1.0, e),
    "ZPlus": ZPlus,
    "ZBox": lambda e: ZBox(-1.0, 1.0, e),
    "WSquare": WSquare,
    "Flat": Flat,
    "TaylorDecomposition": lambda e: TaylorDecomposition(None, epsilon=e),
    "Stabilizer": lambda e: Epsilon(Stabilizer(e)),
}


def epsilons(dtype):
    """From large to the smallest normal number."""
    least = torch.finfo(dtype).tiny
    return [e for e in (1e-2, 1e-4, 1e-6, 1e-9, 1e-15, 1e-20, 1e-30, 1e-37, 1e-200) if e > least] + [least]


def layer_of(dtype, weight=(1.0, -1.0)):
    layer = nn.Linear(len(weight), 1, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight]))
    return layer


def relevance(model, rows, composite, r=1.0):
    x = rows.clone().requires_grad_()
    with composite.register(model):
        z = model(x)
        gradient = composite.formulation == "gradient"
        start = torch.full_like(z, r)
        # A relevance of 1 at a tiny output is a slot that no dtype holds.
        z.backward(torch.where(z.abs() < 1e-2, start, start / z).detach() if gradient else start)
    return x.grad * x.detach() if gradient else x.grad


@both_formulations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_finite_with_every_epsilon(name, dtype, formulation):
    one_off = 1 + 2 * torch.finfo(dtype).eps
    rows = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, one_off], [-1.0, -1.0], [1e-3, 0.0]], dtype=dtype)
    for epsilon in epsilons(dtype):
        rule = RULES[name](epsilon)
        if formulation not in rule.formulations:
            return
        for weight in ((1.0, -1.0), (3.0, -3.0), (0.0, 0.0), (1.0, 1.0)):
            layer = layer_of(dtype, weight)
            assert torch.isfinite(relevance(layer, rows, Composite({nn.Linear: rule}, formulation=formulation))).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_epsilon_acts_as_it_was_asked_for(dtype):
    # z = x_1 - x_2 is exact in each dtype, and near epsilon or far below it
    for epsilon in epsilons(dtype):
        for rows in ([2.0**-5, 0.0], [2.0**-12, 0.0], [1.0, 1.0 - 2.0**-7]):
            z = rows[0] - rows[1]
            wanted = torch.tensor([[rows[0] / (z + epsilon), -rows[1] / (z + epsilon)]], dtype=torch.float64)
            x = torch.tensor([rows], dtype=dtype)
            layer = layer_of(dtype)
            for rule in (Epsilon(epsilon), Epsilon(epsilon, zero_bias=True), Gamma(0.0, epsilon)):
                found = relevance(layer, x, Composite({nn.Linear: rule}))
                torch.testing.assert_close(found.double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=0)
            product = torch.tensor([rows], dtype=dtype, requires_grad=True)
            lf.linear_epsilon(product, layer.weight, epsilon=epsilon).backward(torch.ones(1, 1, dtype=dtype))
            torch.testing.assert_close(product.grad.double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_epsilon_of_operations_acts_as_it_was_asked_for(dtype):
    for epsilon in epsilons(dtype):
        a = torch.tensor([2.0**-12], dtype=dtype, requires_grad=True)
        b = torch.tensor([1.0], dtype=dtype, requires_grad=True)
        z = 2.0**-12
        one, half = torch.ones(1, dtype=dtype), z / (z + epsilon) / 2
        outputs = [
            (lf.add2(a, torch.zeros_like(a), epsilon=epsilon), 2 * half),
            (lf.mean(a, 0, True, epsilon=epsilon), 2 * half),
            (lf.epsilon_lrp(torch.neg, epsilon, a), 2 * half),
            (lf.matmul(a[None], b[None], epsilon=epsilon).flatten(), half),
        ]
        for output, wanted in outputs:
            (found,) = torch.autograd.grad(output, a, one)
            assert found.item() == pytest.approx(wanted, rel=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_is_finite_with_every_epsilon(dtype):
    x = torch.zeros(1, 1, 3, 4, dtype=dtype)
    x[..., 1, :] = torch.tensor([1.0, -1.0, 1.0, -1.0])

    class Model(nn.Module):
        def forward(self, t):
            return F.scaled_dot_product_attention(t, t, t)

    for epsilon in epsilons(dtype):
        for rule in (Attention(epsilon), UniformEpsilon(epsilon)):
            composite = Composite({F.scaled_dot_product_attention: rule})
            assert torch.isfinite(relevance(Model(), x, composite)).all()


OPERATIONS = {
    "UniformEpsilon": (torch.matmul, UniformEpsilon, lambda x: x @ x.mT),
    "GatedEpsilon": (torch.matmul, GatedEpsilon, lambda x: torch.sigmoid(x) @ x.mT),
    "SignalTakesAll": (torch.mul, SignalTakesAll, lambda x: F.silu(x) * x),
    "SignalTakesAll, a matrix": (torch.matmul, SignalTakesAll, lambda x: F.silu(x) @ x.mT),
    "Homogeneous": (torch.linalg.vector_norm, Homogeneous, lambda x: torch.linalg.vector_norm(x, dim=-1)),
    "Attention": (F.scaled_dot_product_attention, Attention, lambda x: F.scaled_dot_product_attention(x, x, x)),
    "ValueAttention": (
        F.scaled_dot_product_attention, ValueAttention, lambda x: F.scaled_dot_product_attention(x, x, x)
    ),
    "EpsilonRule": (torch.sum, EpsilonRule, lambda x: x.sum(-1)),
    "BlockEpsilon": (None, None, lambda x: lf.epsilon_lrp(lambda t: t.sin().sum(-1), OPERATIONS["epsilon"], x)),
}  # fmt: skip


@both_formulations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_rule_of_operations_is_finite_with_every_epsilon(name, dtype, formulation, monkeypatch):
    function, rule, compute = OPERATIONS[name]
    one_off = 1 + 2 * torch.finfo(dtype).eps
    tiny = torch.finfo(dtype).tiny
    rows = torch.tensor([[[1.0, -1.0], [0.0, 0.0], [one_off, -1.0], [1e-3, 0.0], [tiny, tiny]]], dtype=dtype)
    for epsilon in epsilons(dtype):
        monkeypatch.setitem(OPERATIONS, "epsilon", epsilon)
        composite = Composite({function: rule(epsilon)} if rule else {}, formulation=formulation)
        model = Fn(lambda self, x: compute(x))
        for x in (rows, torch.zeros_like(rows), -rows):
            assert torch.isfinite(relevance(model, x, composite)).all(), (epsilon, x)


@both_formulations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drop_ins_take_every_epsilon_alone_and_in_a_registered_model(dtype, formulation):
    x = torch.tensor([[[1.0, -1.0], [0.0, 0.0], [1e-3, 0.0]]], dtype=dtype)
    for epsilon in epsilons(dtype):
        e = {"epsilon": epsilon}
        models = (
            nn.Sequential(lm.LinearEpsilon(2, 1, False, **e)),
            Fn(lambda self, t: self.inner(t, t, t)[0], inner=lm.MultiheadAttentionCP(2, 1, **e)),
            Fn(lambda self, t, e=e: lf.matmul(lf.mean(lf.add2(t, t, **e), 1, True, **e), t.mT, **e)),
        )
        for model in models:
            for parameter in model.parameters():
                nn.init.ones_(parameter)
            alone = x.clone().requires_grad_()
            z = model.to(dtype)(alone)
            z.backward(torch.ones_like(z))
            assert torch.isfinite(alone.grad).all()
            if formulation == "relevance":
                assert torch.equal(relevance(model, x, Composite(defaults=False)), alone.grad)
            else:
                assert torch.isfinite(relevance(model, x, Composite(formulation=formulation))).all()


def test_each_rule_with_an_epsilon_is_among_these():
    def below(kind):
        return {kind}.union(*map(below, kind.__subclasses__()))

    def takes_epsilon(kind):
        return dataclasses.is_dataclass(kind) and "epsilon" in {field.name for field in dataclasses.fields(kind)}

    ours = {kind.__name__ for kind in below(Rule) if kind.__module__.startswith("lxt_compose.") and takes_epsilon(kind)}
    assert ours - {"Scaling"} <= {name.split(",")[0] for name in (*RULES, *OPERATIONS)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_default_is_the_resolution_in_half_precision_and_1e_6_above(dtype):
    expected = torch.finfo(dtype).resolution if dtype in HALF else 1e-6
    layer, x = layer_of(dtype), torch.tensor([[1.0, 1.0]], dtype=dtype)
    found = relevance(layer, x, Composite({nn.Linear: Epsilon()}), r=expected)
    torch.testing.assert_close(found, torch.tensor([[1.0, -1.0]], dtype=dtype))
    by_default = relevance(layer, x, Composite(), r=expected)
    torch.testing.assert_close(by_default, torch.tensor([[1.0, -1.0]], dtype=dtype))
    stabilized = Stabilizer()(torch.zeros(1, dtype=dtype))
    torch.testing.assert_close(stabilized, torch.full((1,), expected, dtype=dtype))


def test_the_default_is_a_number_as_any_other():
    assert DefaultEpsilon(1e-6) == 1e-6
    assert Epsilon() == Epsilon(1e-6)
    assert str(Epsilon()) == str(Epsilon(1e-6)) == "Epsilon(epsilon=1e-06)"
    assert isinstance(EPSILON, float)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quotients_are_bounded_and_only_where_they_could_overflow(dtype):
    info = torch.finfo(dtype)
    bound = 2.0**14 if dtype == torch.float16 else info.max**0.5
    value, zero = torch.tensor([8.0], dtype=dtype), torch.zeros(1, dtype=dtype)
    for quotient in (over_stabilized(value, zero, info.tiny), over_positive(value, zero.clone(), info.tiny)):
        assert quotient.item() == pytest.approx(bound, rel=1e-2)
    assert over_stabilized(-value, zero, info.tiny).item() == pytest.approx(-bound, rel=1e-2)
    assert over_stabilized(value, zero, info.resolution).item() == pytest.approx(8 / info.resolution, rel=2e-2)


def test_relevance_that_is_not_a_number_is_not_hidden():
    x = torch.tensor([[1.0, 1.0]], requires_grad=True)
    with Composite({nn.Linear: Epsilon(1e-38)}).register(layer := layer_of(torch.float32)):
        layer(x).backward(torch.tensor([[torch.nan]]))
    assert x.grad.isnan().all()
