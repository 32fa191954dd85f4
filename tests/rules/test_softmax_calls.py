"""Softmax by every spelling, over any dimension, with masked scores."""

import pytest
import torch
from exact_models import both_formulations, inputs
from support import Fn, assert_close, attribute, start_at
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, SoftmaxTaylor


@both_formulations
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("how", ["function", "method", "module", "torch"])
def test_softmax_is_explained_over_its_own_dimension(dim, how, formulation):
    """``R_x = x (R - s sum R)`` with the sum over the softmax's own dimension."""
    softmax = {
        "function": lambda self, x: F.softmax(x, dim),
        "method": lambda self, x: x.softmax(dim=dim),
        "module": lambda self, x: self.m(x),
        "torch": lambda self, x: torch.softmax(x, dim),
    }[how]
    model, x = Fn(softmax, m=nn.Softmax(dim)), inputs(3, 4, 5)
    s = x.softmax(dim)
    relevance = start_at(s, 1) * s
    expected = x * (relevance - s * relevance.sum(dim, keepdim=True))
    for rules in ({}, {F.softmax: SoftmaxTaylor()}, {nn.Softmax: SoftmaxTaylor()} if how == "module" else {}):
        assert_close(attribute(model, x, Composite(rules, formulation=formulation), 1), expected)


@both_formulations
def test_masked_scores_get_nothing_and_are_finite(formulation):
    """Inputs of -inf get 0, and a fully masked column gives no NaN where the rest is finite."""
    mask = torch.zeros(2, 4, 5, dtype=torch.float64)
    mask[0, :, 2:] = -torch.inf
    mask[1, :, 4] = -torch.inf
    model, x = Fn(lambda self, x: F.softmax(x + mask, 1)), inputs(2, 4, 5)
    allowed = mask == 0
    z = torch.where(allowed, (x + mask).softmax(1), 0)
    relevance = torch.zeros_like(z)
    relevance[:, 1] = z[:, 1]
    expected = torch.where(allowed, x * (relevance - z * relevance.sum(1, keepdim=True)), 0)
    leaf = x.clone().requires_grad_()
    with Composite(formulation=formulation).register(model):
        y = model(leaf)
        slot = torch.zeros_like(y)
        slot[:, 1] = y[:, 1].detach() if formulation == "relevance" else 1
        y.backward(torch.where(allowed, slot, 0))
    found = leaf.grad if formulation == "relevance" else x * leaf.grad
    assert_close(found[allowed], expected[allowed], 1e-5)
    assert found[~allowed].count_nonzero() == 0
