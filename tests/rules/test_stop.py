"""Stop: no relevance passes, and the output is a constant for what comes after."""

import pytest
import torch
from support import FORMULATIONS, assert_close
from under_rules import carrier, relevance, tensor

from lxt_compose import Epsilon, Stop


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_what_is_stopped_keeps_its_share_as_a_constant(formulation):
    a, b, r = carrier(3, 4), carrier(3, 4, seed=1), tensor(3, 4)
    rules = {torch.tanh: Stop(), torch.add: Epsilon(0.0)}
    found = relevance(lambda a, b: a + torch.tanh(b), [a, b], rules, r, formulation)
    total = a.detach() + torch.tanh(b.detach())
    assert_close(found[0], a.detach() / total * r)
    assert found[1] is None
