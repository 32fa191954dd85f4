"""Bilinear layers: linear in the input that carries, shared where both do."""

import oracles
import torch
from support import Fn, assert_close
from torch import nn

from lxt_compose import Composite, Gamma


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


def test_bilinear_of_two_carriers_shares_evenly_by_default():
    """A product of two carriers: each gets half of what is not the bias's."""
    torch.manual_seed(6)
    layer = nn.Bilinear(3, 2, 4, bias=False).double()
    a, b = torch.randn(2, 3).double().requires_grad_(), torch.randn(2, 2).double().requires_grad_()
    with Composite().register(layer):
        z = layer(a, b)
        z.backward(z.detach())
    for x in (a, b):
        assert_close(x.grad.sum(1), z.detach().sum(1) / 2, 1e-4)
