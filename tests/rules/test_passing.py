"""Pass: relevance goes on unchanged, element by element."""

import pytest
from support import assert_close
from torch import nn
from under_rules import both, carrier, relevance, tensor

from lxt_compose import Pass, RuleError


def test_pass():
    x, r = carrier(3, 4), tensor(3, 4)
    norm = nn.LayerNorm(4).double()
    assert_close(both(norm, [x], Pass(), r, 1e-6)[0], r, 1e-6)
    assert_close(relevance(nn.Flatten(0), [x], Pass(), r.flatten())[0], r)
    with pytest.raises(RuleError, match="element by element"):
        relevance(nn.Linear(4, 2).double(), [x], Pass())
