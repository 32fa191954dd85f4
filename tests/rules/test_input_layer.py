"""Rules for the input layer: ZBox, WSquare, Flat."""

import oracles
import pytest
import torch
from split_rules import expected_relevance, layer_and_input, relevance
from support import assert_close
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Flat, RuleError, WSquare, ZBox


def test_zbox_takes_tensors_that_broadcast():
    """Bounds for each channel, and bounds that differ from sample to sample."""
    layer, x = layer_and_input("conv2d, uneven")
    r = torch.randn_like(layer(x))
    low, high = -torch.rand(1, 2, 1, 1).double() - 2, torch.rand(2, 1, 1).double() + 2
    found = relevance(layer, x, ZBox(low, high), r)
    wanted = oracles.zbox(low.expand(1, *x.shape[1:]).flatten(), high.expand(1, *x.shape[1:]).flatten())
    assert_close(found, expected_relevance(layer, x, r, wanted), 1e-9)
    each = torch.arange(3.0, 5.0).double().reshape(2, 1, 1, 1)
    found = relevance(layer, x, ZBox(-each, each), r)
    for i, bound in enumerate((3.0, 4.0)):
        wanted = expected_relevance(layer, x[i : i + 1], r[i : i + 1], oracles.zbox(-bound, bound))
        assert_close(found[i : i + 1], wanted, 1e-9)


@pytest.mark.parametrize("rule", [ZBox(0.0, 1.0), WSquare(), Flat()], ids=str)
def test_rules_that_need_the_relevance_formulation_say_so(rule):
    for key in (nn.Linear, F.linear):
        with pytest.raises(RuleError, match=r"needs formulation='relevance', not 'gradient'"):
            Composite({key: rule}, formulation="gradient").register(nn.Linear(2, 2))
