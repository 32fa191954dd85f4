"""Gamma: by hand on one neuron, and on a layer of two inputs of which one carries."""

import oracles
import pytest
import torch
from support import FORMULATIONS, Fn, assert_close
from torch import nn
from under_rules import relevance

from lxt_compose import Gamma


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("gamma", [0.0, 0.25, 1.0, 3.0])
def test_positive_contributions_weigh_more(gamma, formulation):
    """Contributions 6 and -2 of x = (2, 1): ``R (1 + gamma) 6 / ((1 + gamma) 6 - 2)`` and ``-2 R / (...)``."""
    layer = nn.Linear(2, 1, bias=False).double().requires_grad_(False)
    layer.weight.copy_(torch.tensor([[3.0, -2.0]]))
    x, r = torch.tensor([[2.0, 1.0]]).double().requires_grad_(), torch.tensor([[5.0]]).double()
    parts = torch.tensor([[6.0 * (1 + gamma), -2.0]]).double()
    assert_close(relevance(layer, [x], Gamma(gamma, 0.0), r, formulation)[0], parts / parts.sum() * r)


def test_bilinear_is_linear_in_the_input_that_carries():
    torch.manual_seed(6)
    layer = nn.Bilinear(3, 2, 4).double().requires_grad_(False)
    x, constant, r = torch.randn(2, 3).double(), torch.randn(2, 2).double(), torch.randn(2, 4).double()
    leaf = x.clone().requires_grad_()
    with Gamma().register(layer):
        layer(leaf, constant).backward(r)
    for i in range(2):
        dense = oracles.Dense(Fn(lambda _, x, i=i: layer(x, constant[i : i + 1])), (1, 3))
        assert_close(leaf.grad[i : i + 1], dense.relevance(oracles.gamma(0.25), x[i : i + 1], r[i : i + 1]), 1e-9)
