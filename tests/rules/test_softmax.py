"""SoftmaxTaylor against the equation of AttnLRP, over any dimension, and with masked scores."""

import math

import oracles
import pytest
import torch
from support import FORMULATIONS, Fn, assert_close
from torch import nn
from torch.nn import functional as F
from under_rules import both, carrier, tensor

from lxt_compose import Composite, SoftmaxTaylor


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_softmax_sums_over_its_own_dimension(dim):
    x, r = carrier(2, 3, 4), tensor(2, 3, 4, seed=1)
    wanted = oracles.softmax_taylor(x.detach(), r, dim)
    for function in (lambda x: x.softmax(dim), lambda x: F.softmax(x, dim=dim), nn.Softmax(dim)):
        assert_close(both(function, [x], {F.softmax: SoftmaxTaylor()}, r)[0], wanted)
    assert_close(both(lambda x: F.softmin(x, dim), [x], {}, r)[0], oracles.softmax_taylor(-x.detach(), r, dim))


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_softmax_without_a_dimension_takes_that_of_torch(dims):
    x = tensor(2, 3, 2, 3)[(0,) * (4 - dims)].clone().requires_grad_()
    r = torch.randn_like(x)
    dim = 0 if dims in (1, 3) else 1
    assert torch.equal(F.softmax(x), F.softmax(x, dim))
    assert_close(both(lambda x: F.softmax(x), [x], {}, r)[0], oracles.softmax_taylor(x.detach(), r, dim))


def test_masked_inputs_get_nothing():
    """-inf gets 0; a column that is masked throughout neither gives nor gets, and spoils nobody else's numbers."""
    x = tensor(4, 3)
    x[0, 1] = x[2, 2] = float("-inf")
    r = tensor(4, 3, seed=1)
    wanted = oracles.softmax_taylor(x, r, 0)
    for formulation in FORMULATIONS:
        leaf = x.clone().requires_grad_()
        with Composite(formulation=formulation).register(model := Fn(lambda _, x: torch.softmax(x, 0))):
            s = model(leaf)
            s.backward(r if formulation == "relevance" else torch.where(s == 0, 0, r / s.detach()))
        found = leaf.grad if formulation == "relevance" else torch.where(x.isinf(), 0, x * leaf.grad)
        kept = torch.where(torch.softmax(x, 0) == 0, 0, r)
        assert_close(found, wanted if formulation == "relevance" else oracles.softmax_taylor(x, kept, 0), 1e-8)
    x[:, 1] = float("-inf")
    leaf = x.clone().requires_grad_()
    with Composite(formulation="gradient").register(model := Fn(lambda _, x: torch.softmax(x, 0))):
        model(leaf).backward(torch.ones(4, 3, dtype=torch.float64))
    assert torch.equal(leaf.grad[:, 1], torch.zeros(4, dtype=torch.float64))
    assert torch.isfinite(leaf.grad).all()


def test_log_softmax_and_logsumexp():
    x, r = carrier(3, 4), tensor(3, 4, seed=1)
    for function, given in ((lambda x: F.log_softmax(x, 1), r), (lambda x: torch.logsumexp(x, 1), tensor(3))):
        assert_close(both(function, [x], {}, given)[0], oracles.epsilon_of(function, x, given, 0.0))


def test_smooth_maxima_of_two_and_running_ones():
    """``R_a = a * da z * R / z`` with ``da z = exp(a - z)``; by the same formula as logsumexp of both side by side."""
    a, b, r = carrier(3, 4), carrier(3, 4, seed=2), tensor(3, 4, seed=1)
    for function, base in ((torch.logaddexp, math.e), (torch.logaddexp2, 2.0)):
        z = function(a, b).detach()
        expected = [x.detach() * base ** (x.detach() - z) * r / z for x in (a, b)]
        for found, wanted in zip(both(function, [a, b], {}, r), expected, strict=True):
            assert_close(found, wanted, 1e-6)
    beside = both(lambda a, b: torch.logsumexp(torch.stack([a, b]), 0), [a, b], {}, r)
    for found, wanted in zip(both(torch.logaddexp, [a, b], {}, r), beside, strict=True):
        assert_close(found, wanted, 1e-6)
    found = both(lambda x: torch.logcumsumexp(x, 1), [a], {}, r)[0]
    assert_close(found, oracles.epsilon_of(lambda x: torch.logcumsumexp(x, 1), a, r, 0.0), 1e-6)
