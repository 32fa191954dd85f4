"""Split rules: on a block they act on the layers inside; ranges and types of parameters, equality."""

import pytest
import torch
from split_rules import relevance
from support import Attention
from torch import nn

from lxt_compose import AlphaBeta, Epsilon, Flat, Gamma, Stabilizer, WSquare, ZBox, ZPlus


def test_blocks_give_the_rule_to_each_layer_inside():
    """A block of layers is no layer: Gamma on a Sequential is Gamma on its layers, Identity on its activation."""
    torch.manual_seed(4)
    block = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2)).double()
    x, r = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    assert torch.equal(relevance(block, x, Gamma(), r, key=""), relevance(block, x, Gamma(), r, key=nn.Linear))


def test_blocks_with_products_of_two_carriers():
    """Attention inside a block: its layers get the rule, the products of queries, keys and values their own."""
    torch.manual_seed(4)
    block = Attention(4).double()
    x, r = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.equal(relevance(block, x, Gamma(), r, key=""), relevance(block, x, Gamma(), r, key=nn.Linear))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Gamma(-0.1), r"gamma must be finite and in \[0, inf\)"), (lambda: Gamma(float("inf")), "gamma must"),
    (lambda: Gamma(epsilon=-1.0), "epsilon must be finite"), (lambda: AlphaBeta(2.0, 2.0), "alpha - beta must be 1"),
    (lambda: AlphaBeta(0.5, -0.5), r"beta must be finite and in \[0"), (lambda: ZBox(1.0, 0.0), "low must not be"),
    (lambda: ZBox(float("nan"), 0.0), "low must be"), (lambda: ZBox(torch.tensor([0.0, 2.0]), 1.0), "low must not"),
    (lambda: ZPlus(-1.0), "epsilon"), (lambda: WSquare(-1.0), "epsilon"), (lambda: Flat(-1.0), "epsilon"),
    (lambda: Stabilizer(0.0), "epsilon must be above 0"), (lambda: Epsilon(float("nan")), "epsilon must be finite"),
])  # fmt: skip
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_of_a_wrong_type():
    for make in (lambda: Gamma("0.25"), lambda: AlphaBeta(True, 0.0), lambda: Epsilon("1e-6")):
        with pytest.raises(TypeError, match="must be a number"):
            make()


def test_rules_are_values():
    assert Gamma(0.25) == Gamma()
    assert Gamma(0.5) != Gamma()
    assert ZBox(0.0, torch.ones(1, 3)) == ZBox(0.0, torch.ones(1, 3))
    assert ZBox(0.0, 1.0) != ZBox(0.0, 2.0)
    assert len({ZPlus(), ZPlus(), ZBox(0.0, 1.0), ZBox(0.0, 1.0)}) == 2
    assert str(Gamma()) == "Gamma(gamma=0.25)"
    assert str(Gamma(zero_bias=True)) == "Gamma(gamma=0.25, zero_bias=True)"
    assert str(ZBox(0.0, torch.ones(1, 3))) == "ZBox(low=0.0, high=tensor(1, 3))"
