"""Composites written for LXT run unchanged: drop-in modules and functions as values, and LXT's names of rules."""

import copy
import operator
from functools import partial

import pytest
import torch
from support import assert_close, fingerprint
from torch import nn
from torch.nn import functional as F

from lxt_compose import (
    Composite,
    Epsilon,
    Norm,
    Pass,
    RuleError,
    SoftmaxTaylor,
    Stop,
    TaylorDecomposition,
    Uniform,
    UniformEpsilon,
)
from lxt_compose import rules as lr
from lxt_compose.lxt import functional as lf
from lxt_compose.lxt import modules as lm


class Block(nn.Module):
    """A small transformer block in which every kind of drop-in has a place."""

    def __init__(self, size=4):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.RMSNorm(size, 1e-5)
        self.q, self.k, self.v, self.out = (nn.Linear(size, size) for _ in range(4))
        self.up, self.gate, self.down = nn.Linear(size, 6), nn.Linear(size, 6), nn.Linear(6, size)
        self.softmax, self.act = nn.Softmax(-1), nn.SiLU()

    def attend(self, x, matmul, scale):
        weights = self.softmax(scale(matmul(self.q(x), self.k(x).transpose(-1, -2)), 0.5))
        return self.out(matmul(weights, self.v(x)))

    def forward(self, x):
        x = x + self.attend(self.norm1(x), torch.matmul, operator.mul)
        y = self.norm2(x)
        x = operator.add(x, self.down(self.act(self.gate(y)) * self.up(y)))
        return F.normalize(x, dim=-1).mean(1)


class Rewritten(Block):
    """The same with drop-in modules and functions in the places, as somebody would write it by hand."""

    def forward(self, x):
        x = lf.add2(x, self.attend(self.norm1(x), lf.matmul, lf.mul2))
        y = self.norm2(x)
        x = lf.add2(x, self.down(lf.mul2(lf.identity(self.act, self.gate(y)), self.up(y))))
        return lf.mean(lf.normalize(x, dim=-1), 1)


def rewritten(model):
    """A copy of the model with drop-ins in it."""
    twin = copy.deepcopy(model)
    twin.__class__ = Rewritten
    kinds = {nn.Linear: lm.LinearEpsilon, nn.LayerNorm: lm.LayerNormEpsilon, nn.RMSNorm: lm.RMSNormIdentity}
    for name, child in list(twin.named_children()):
        kind = {**kinds, nn.Softmax: lm.SoftmaxDT}.get(type(child))
        if kind:
            setattr(twin, name, kind.from_torch(child))
    return twin.requires_grad_(False)


FOR_LXT = {
    nn.Linear: lm.LinearEpsilon,
    nn.LayerNorm: lm.LayerNormEpsilon,
    nn.RMSNorm: lm.RMSNormIdentity,
    nn.Softmax: lm.SoftmaxDT,
    nn.SiLU: lr.IdentityRule,
    operator.add: lf.add2,
    operator.mul: lf.mul2,
    torch.matmul: lf.matmul,
    F.normalize: lf.normalize,
    torch.mean: lf.mean,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Block().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    return model


def explained(model, x, composite, given):
    x = x.clone().requires_grad_()
    with composite.register(model) as registration:
        y = model(x)
        (found,) = torch.autograd.grad(y, x, given if composite.formulation == "relevance" else given / y.detach())
        report = registration.report()
    return y.detach(), found if composite.formulation == "relevance" else x.detach() * found, report


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_a_composite_of_drop_ins_is_the_model_rewritten_with_them(model, formulation):
    x, given = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    before, plain = fingerprint(model), model(x)
    y, found, report = explained(model, x, Composite(FOR_LXT, formulation=formulation), given)
    assert torch.equal(y, plain)
    assert fingerprint(model) == before
    assert report.complete
    assert not report.unmatched
    wanted = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(rewritten(model)(wanted), wanted, given)
    # in the gradient formulation what is passed unchanged is divided by x and multiplied again, with a stabilizer
    assert_close(found, expected, 1e-12 if formulation == "relevance" else 1e-4)


def test_what_each_drop_in_stands_for():
    values = {
        lm.LinearEpsilon: Epsilon(1e-6),
        lm.SoftmaxDT: SoftmaxTaylor(),
        lm.RMSNormIdentity: Pass(),
        lm.LayerNormEpsilon: Norm(),
        lm.MultiheadAttentionCP: lr.ValueAttention(),
        lm.MultiheadAttention_CP: lr.ValueAttention(),
        lf.linear_epsilon: Epsilon(1e-6),
        lf.add2: Epsilon(1e-8),
        lf.mul2: Uniform(),
        lf.matmul: UniformEpsilon(1e-8),
        lf.softmax: SoftmaxTaylor(),
        lf.mean: Epsilon(1e-6),
        lf.layer_norm: Norm(),
        lf.rms_norm_identity: Pass(),
        lf.normalize: Pass(),
        partial(lf.add2, epsilon=0.5): Epsilon(0.5),
        partial(lf.matmul, epsilon=0.5): UniformEpsilon(0.5),
        partial(lm.LinearEpsilon, epsilon=0.5): Epsilon(0.5),
        partial(lf.identity, torch.relu): lr.IdentityRule(),
        partial(lf.stop_relevance, torch.relu): Stop(),
        partial(lf.epsilon_lrp, torch.relu, 0.5): Epsilon(0.5),
        lr.EpsilonRule: lr.EpsilonRule(1e-8),
        lr.IdentityRule: lr.IdentityRule(zero_bias=True),
        lr.UniformRule: Uniform(),
        lr.UniformEpsilonRule: UniformEpsilon(1e-6),
        lr.StopRelevanceRule: Stop(),
        partial(lr.EpsilonRule, epsilon=0.5): lr.EpsilonRule(0.5),
    }
    for value, rule in values.items():
        assert lr.rule_of(value) == rule
        assert Composite({nn.Linear: value}).assignments[0].rule == rule
        assert Composite({torch.add: value}).assignments[0].rule == rule


def test_taylor_decomposition_by_the_arguments_of_lxt():
    def to_the_first(relevance, inputs):
        return (relevance, *map(torch.zeros_like, inputs[1:]))

    values = {
        lr.TaylorDecompositionRule: (0.0, False),
        partial(lr.TaylorDecompositionRule, ref=None): (None, False),
        partial(lr.TaylorDecompositionRule, ref=(0.5, None)): ((0.5, None), False),
        partial(lr.TaylorDecompositionRule, ref=0.5, bias=True): (0.5, True),
        partial(lr.TaylorDecompositionRule, bias=True, distribute_bias=to_the_first): (0.0, to_the_first),
    }
    for value, (reference, bias) in values.items():
        (entry,) = Composite({nn.Tanh: value}).assignments
        assert isinstance(entry.rule, TaylorDecomposition)
        assert (entry.rule.reference, entry.rule.bias) == (reference, bias)


def test_a_function_of_ones_own_stays_a_function():
    def mine(a, b):
        return a + b

    assert lr.rule_of(mine) is mine
    assert Composite({torch.add: mine}).assignments[0].replacement is mine


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (partial(lf.softmax, temperature=2.0), "unexpected keyword argument 'temperature'"),
        (partial(lf.add2, alpha=2), "unexpected keyword argument 'alpha'"),
        (partial(lm.LinearEpsilon, 3, 4), "as a value of a composite"),
        (nn.Linear, "must be a rule"),
        ([], "must be a rule"),
        ({}, "must be a rule"),
    ],
)
def test_values_that_would_change_the_model_or_are_none_are_refused(value, message):
    with pytest.raises(TypeError, match=message):
        Composite({nn.Linear: value})


def test_epsilon_rule_has_the_stabilizer_of_lxt_and_epsilon_its_formula():
    layer, x = nn.Linear(4, 3).double(), torch.randn(2, 4, dtype=torch.float64)
    given = torch.randn(2, 3, dtype=torch.float64)
    found = [explained(layer, x, Composite({"": rule}), given)[1] for rule in (lr.EpsilonRule, Epsilon(1e-8))]
    assert torch.equal(*found)


# ---- drop-ins of one's own -----------------------------------------------------------------------------------------


class Doubling(torch.autograd.Function):
    """Passes twice the relevance, so that its work can be told from any rule's."""

    @staticmethod
    def forward(ctx, x, z):
        return z.detach()

    @staticmethod
    def backward(ctx, relevance):
        return 2 * relevance, None


class MyScale(nn.Module):
    """A layer, and a drop-in for it that is not of this library."""

    def __init__(self, size=4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x, factor=1.0):
        return {"z": x * self.weight * factor, "note": "kept"}


class MyDropIn(nn.Module):
    offset = 0.0

    def __init__(self, module):
        super().__init__()
        self.weight = module.weight

    @classmethod
    def from_torch(cls, module, offset=0.0):
        new = cls(module)
        new.offset = offset
        return new

    def forward(self, x, factor=1.0):
        z = x.detach() * self.weight.detach() * factor + self.offset
        return {"z": Doubling.apply(torch.sub(x, 0.0), z), "note": "kept"}


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.fc = MyScale(), nn.Linear(4, 2)

    def forward(self, x):
        out = self.scale(x, factor=3.0)
        assert out["note"] == "kept"
        return self.fc(out["z"] + x)


def test_a_module_class_with_from_torch_runs_beside_the_module():
    model = Head().double()
    x, given = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    before, plain = fingerprint(model), model(x)
    y, found, report = explained(model, x, Composite({MyScale: MyDropIn, nn.Linear: Epsilon(1e-12)}), given)
    assert torch.equal(y, plain)
    assert fingerprint(model) == before
    assert report.complete
    assert [row.rule for row in report.rows if row.path == "scale"] == ["DropIn(MyDropIn)"]
    assert {row.target for row in report.rows} == {"MyScale", "Linear", "add"}  # what the drop-in calls is not listed
    inner = (x * model.scale.weight * 3 + x).detach().requires_grad_()
    (r_inner,) = torch.autograd.grad(model.fc(inner), inner, given / plain.detach())
    r_inner = r_inner * inner.detach()
    shares = r_inner / inner.detach()
    expected = 2 * shares * (x * model.scale.weight * 3).detach() + shares * x
    assert_close(found, expected, 1e-5)


def test_it_must_compute_the_same_pass_relevance_and_fit():
    model, x = Head().double(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    other = Composite({MyScale: partial(MyDropIn, offset=1.0)})
    with (
        other.register(model),
        pytest.raises(RuleError, match=r"DropIn\(MyDropIn\) computes other values than 'scale'"),
    ):
        model(x)
    with pytest.raises(RuleError, match=r"DropIn\(MyDropIn\) needs formulation='relevance'"):
        Composite({MyScale: MyDropIn}, formulation="gradient").register(model)
    with pytest.raises(RuleError, match=r"cannot be built from 'act' \(ReLU\).*no attribute 'weight'"):
        Composite({"act": MyDropIn}).register(nn.ModuleDict({"act": nn.ReLU()}))


def test_attention_as_a_drop_in():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double().eval()

    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x)[0]

    model = Uses()
    x, given = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    composite = Composite({nn.MultiheadAttention: lm.MultiheadAttentionCP})
    _, found, report = explained(model, x, composite, given)
    assert report.complete
    wanted = x.clone().requires_grad_()
    output, _ = lm.MultiheadAttentionCP.from_torch(attention)(wanted, wanted, wanted)
    (expected,) = torch.autograd.grad(output, wanted, given)
    assert_close(found, expected, 1e-5)
