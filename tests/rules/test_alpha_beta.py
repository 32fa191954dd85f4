"""AlphaBeta: the bias counts once, zeros, cancellation."""

import oracles
import pytest
import torch
from split_rules import expected_relevance, relevance
from support import assert_close
from torch import nn

from lxt_compose import AlphaBeta, ZPlus


@pytest.mark.parametrize("rule", [AlphaBeta(), ZPlus()], ids=str)
def test_inputs_of_zero_have_no_slot_in_the_gradient_formulation(rule):
    """The share of a neuron without contributions is R over the stabilizer alone: it must not reach what is 0."""
    layer = nn.Linear(3, 2).double()
    for rows in ([0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, -1.0, 2.0]):
        x = torch.tensor([rows], dtype=torch.float64, requires_grad=True)
        with rule.register(layer, formulation="gradient"):
            layer(x).sum().backward()
        assert torch.equal(x.grad != 0, x.detach() != 0)


def test_bias_is_counted_once():
    layer = nn.Linear(2, 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]])), layer.bias.fill_(-1.0)
    x, r = torch.ones(1, 2, dtype=torch.float64), torch.tensor([[-1.0]], dtype=torch.float64)
    layer.requires_grad_(False)
    assert_close(relevance(layer, x, AlphaBeta(1.0, 0.0), r), torch.tensor([[-1.0, 0.0]]).double(), 1e-5)
    assert_close(relevance(layer, x, AlphaBeta(2.0, 1.0), r), torch.tensor([[-2.0, 0.5]]).double(), 1e-5)


def test_cancellation_falls_back_to_the_parts_themselves():
    """Sums that a difference would get wrong: in float32 the result stays within 1e-4 of float64's."""
    torch.manual_seed(8)
    tiny = 10.0 ** -torch.arange(0.0, 7.0)
    for x in (torch.ones(7, 3), torch.tensor([[1.0, -1.0, 1.0]]).expand(7, 3)):
        layer = nn.Linear(3, 7, bias=False).requires_grad_(False)
        layer.weight.copy_(torch.stack([tiny, -torch.ones(7), -torch.rand(7)], 1) * x.sign())
        r = torch.ones(7, 7)
        for rule, oracle in ((AlphaBeta(), oracles.alpha_beta(2.0, 1.0)), (ZPlus(), oracles.zplus())):
            for rows in (x.contiguous(), -x):
                found = relevance(layer, rows, rule, r)
                wanted = expected_relevance(layer, rows, r, oracle)
                assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
