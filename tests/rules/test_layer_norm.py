"""Layer norm with its statistic held: ``rstd * (w s - mean(w s))``, summed by hand."""

import pytest
import torch
from support import assert_close
from under_rules import tensor

from lxt_compose.rules.layer_norm import layer_norm_backward


@pytest.mark.parametrize("weighted", [True, False])
def test_the_slot_of_the_input(weighted):
    slot, rstd = tensor(3, 4), tensor(3, 1, seed=1).abs() + 0.1
    weight = tensor(4, seed=2) if weighted else None
    wanted = torch.zeros(3, 4).double()
    for i in range(3):
        scaled = [slot[i, k] * (weight[k] if weighted else 1) for k in range(4)]
        for k in range(4):
            wanted[i, k] = rstd[i, 0] * (scaled[k] - sum(scaled) / 4)
    assert_close(layer_norm_backward(slot, (4,), rstd, weight), wanted)
