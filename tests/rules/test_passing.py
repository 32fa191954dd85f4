"""Pass and Stop."""

import pytest
import torch
from support import FORMULATIONS, assert_close
from torch import nn
from under_rules import both, carrier, relevance, tensor

from lxt_compose import Epsilon, Pass, RuleError, Stop


def test_pass_and_stop():
    x, r = carrier(3, 4), tensor(3, 4)
    norm = nn.LayerNorm(4).double()
    assert_close(both(norm, [x], Pass(), r, 1e-6)[0], r, 1e-6)
    assert_close(relevance(nn.Flatten(0), [x], Pass(), r.flatten())[0], r)
    with pytest.raises(RuleError, match="element by element"):
        relevance(nn.Linear(4, 2).double(), [x], Pass())
    a, b = carrier(3, 4), carrier(3, 4, seed=1)
    rules = {torch.tanh: Stop(), torch.add: Epsilon(0.0)}
    for formulation in FORMULATIONS:
        found = relevance(lambda a, b: a + torch.tanh(b), [a, b], rules, r, formulation)
        total = a.detach() + torch.tanh(b.detach())
        assert_close(found[0], a.detach() / total * r)
        assert found[1] is None
