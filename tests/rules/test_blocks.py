"""A split rule on a block acts on the layers inside."""

import torch
from split_rules import relevance
from support import Attention
from torch import nn

from lxt_compose import Gamma


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
