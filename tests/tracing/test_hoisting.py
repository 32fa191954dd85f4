"""What a graph keeps of its weights is computed anew when they change, however they are changed."""

import pytest
import torch
from torch import nn

from lxt_compose import AlphaBeta, Composite, Gamma, ZPlus, attribute


@pytest.mark.parametrize("rule", [ZPlus(), Gamma(), AlphaBeta()], ids=str)
def test_weights_that_are_changed_through_data(rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    composite, x = Composite({nn.Linear: rule}), torch.randn(2, 6)
    traced = composite.trace(model, x, target=1)
    before = traced(x).relevance
    for change in (
        lambda: model[0].weight.data.mul_(-2),
        lambda: model[2].weight.data.copy_(torch.randn(3, 40)),
        lambda: setattr(model[2].weight, "data", torch.randn(40, 3).t()),
        lambda: model[2].weight.data.add_(1),
        lambda: model[0].bias.data.add_(1),
    ):
        change()
        found, expected = traced(x).relevance, attribute(model, x, target=1, composite=composite).relevance
        assert torch.equal(found, expected)
        assert not torch.equal(found, before)
        before = found
