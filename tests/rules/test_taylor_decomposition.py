"""TaylorDecomposition at given and computed reference points."""

import math

import oracles
import pytest
import torch
from support import FORMULATIONS, Fn, assert_close
from torch import nn
from under_rules import carrier, relevance, tensor

from lxt_compose import Composite, Epsilon, RuleError, TaylorDecomposition, ZPlus


def curved(x):
    return torch.tanh(x @ torch.arange(12, dtype=torch.float64).reshape(4, 3).cos()) + 0.5


REFERENCES = {
    "0": (0.0, torch.zeros_like),
    "0.3": (0.3, lambda x: torch.full_like(x, 0.3)),
    "tensor": (tensor(4, seed=3), lambda x: tensor(4, seed=3)),
    "half": (lambda x: x / 2, lambda x: x / 2),
    "itself": (None, lambda x: x),
}


@pytest.mark.parametrize(("reference", "point_of"), REFERENCES.values(), ids=REFERENCES)
def test_taylor_decomposition(reference, point_of):
    """``R_i = x_i sum_j J_ji(x~) R_j / f_j(x)``, and with the bias ``b_j = f_j(x~) - sum_i J_ji(x~) x~_i`` shared."""
    x, r = carrier(2, 4), tensor(2, 3, seed=4)
    module = Fn(lambda _, x: curved(x))
    for formulation in FORMULATIONS:
        found = relevance(module, [x], TaylorDecomposition(reference, epsilon=1e-9), r, formulation)[0]
        for i in range(2):
            point = point_of(x.detach()[i])
            jacobian, at_point = oracles.jacobian(curved, point)
            share = r[i] / curved(x.detach()[i])
            assert_close(found[i], x.detach()[i] * (share @ jacobian), 1e-6)
            bias = at_point - jacobian @ point
            if formulation == "relevance":
                whole = relevance(module, [x], TaylorDecomposition(reference, True, 1e-9), r)[0]
                assert_close(whole[i], x.detach()[i] * (share @ jacobian) + (share * bias).sum() / 4, 1e-6)


def test_taylor_decomposition_of_several_inputs_and_other_shares():
    a, b, r = carrier(2, 3), carrier(2, 3, seed=1), tensor(2, 3, seed=2)
    function = lambda a, b: torch.exp(a) * b + 1  # noqa: E731
    given = []

    def to_the_second(relevance, inputs):
        given.append(relevance)
        return torch.zeros_like(inputs[0]), relevance

    found = relevance(Fn(lambda _, *xs: function(*xs)), [a, b], TaylorDecomposition(0.0, to_the_second, 1e-9), r)
    share = r / function(a, b).detach()
    # at 0: d/da = b e^a = 0, d/db = e^a = 1, f = 1
    assert_close(found[0], torch.zeros(2, 3).double(), 1e-6)
    assert_close(found[1], b.detach() * share + share, 1e-6)
    assert_close(given[0], share, 1e-6)
    found = relevance(torch.exp, [a], {torch.exp: TaylorDecomposition()}, r)[0]
    assert_close(found, a.detach() * r / a.detach().exp(), 1e-5)
    with pytest.raises(RuleError, match="needs formulation='relevance'"):
        Composite({"": TaylorDecomposition(bias=True)}, formulation="gradient").register(nn.Linear(2, 2))
    found = relevance(Fn(lambda _, *xs: function(*xs)), [a, b], TaylorDecomposition((0.5, b.detach()), epsilon=1e-9), r)
    # at (1/2, b): d/da = b e^(1/2), d/db = e^(1/2)
    assert_close(found[0], a.detach() * b.detach() * math.exp(0.5) * share, 1e-6)
    assert_close(found[1], b.detach() * math.exp(0.5) * share, 1e-6)
    with pytest.raises(RuleError, match=r"TaylorDecomposition has 2 references, but exp in .* has 1 inputs"):
        relevance(torch.exp, [a], {torch.exp: TaylorDecomposition([0.0, 1.0])}, r)
    with pytest.raises(TypeError, match="bias must be True, False or a function"):
        TaylorDecomposition(bias="even")


@pytest.mark.parametrize("rule", [TaylorDecomposition(), ZPlus(), Epsilon(zero_bias=True)], ids=str)
def test_what_a_rule_runs_once_more_leaves_no_statistics(rule):
    norm, plain = (nn.BatchNorm1d(3).double().requires_grad_(False) for _ in range(2))
    x = carrier(4, 3)
    plain(x)
    with Composite({nn.BatchNorm1d: rule}).register(norm):
        if isinstance(rule, TaylorDecomposition):
            norm(x).sum().backward()
        else:
            with pytest.raises(RuleError, match=r"the model itself .* is (no such layer|not)"):
                norm(x)
    assert norm.num_batches_tracked == 1
    assert torch.equal(norm.running_mean, plain.running_mean)
    assert torch.equal(norm.running_var, plain.running_var)
