"""UniformEpsilon against the paper's equation, elementwise in float64, in both formulations."""

import oracles
import pytest
import torch
from support import FORMULATIONS, assert_close
from torch import nn
from under_rules import both, carrier, relevance, tensor

from lxt_compose import Composite, UniformEpsilon


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_uniform_epsilon(formulation):
    a, b, r = carrier(3, 4), carrier(4, 2), tensor(3, 2, seed=3)
    wanted = oracles.matmul_uniform_epsilon(a.detach(), b.detach(), r, 1e-2)
    for function in (torch.matmul, torch.mm, lambda a, b: torch.einsum("ij,jk->ik", a, b)):
        rules = dict.fromkeys([torch.matmul, torch.mm, torch.einsum], UniformEpsilon(1e-2))
        found = relevance(function, [a, b], rules, r, formulation)
        for x, y in zip(found, wanted, strict=True):
            assert_close(x, y)


def test_uniform_epsilon_of_three_factors_of_one_and_with_a_bias():
    a, b, c, r = carrier(3, 4), carrier(4, 2), carrier(2, 3), tensor(3, 3)
    rule = {torch.einsum: UniformEpsilon(0.0), torch.matmul: UniformEpsilon(0.0), torch.addmm: UniformEpsilon(0.0)}
    found = both(lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c), [a, b, c], rule, r)
    z = (a @ b @ c).detach()
    for x, leaf, g in zip(found, [a, b, c], torch.autograd.grad(a @ b @ c, [a, b, c], r / z), strict=True):
        assert_close(x, leaf.detach() * g / 3)
    one = both(lambda a, b: a @ b, [a, b.detach()], rule, r[:, :2])[0]
    z = (a @ b).detach()
    assert_close(one, a.detach() * ((r[:, :2] / z) @ b.detach().T))
    bias = carrier(2)
    found = both(torch.addmm, [bias, a, b], rule, r[:, :2])
    z = (bias + a @ b).detach()
    assert_close(found[0], (bias.detach() / z * r[:, :2]).sum(0))
    assert_close(found[1], a.detach() * ((r[:, :2] / z) @ b.detach().T) / 2)


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
