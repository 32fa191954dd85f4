"""How rules are written: as one would write them, without seldom arguments at their defaults."""

import pytest
import torch

from lxt_compose import Epsilon, Gamma, Pass, Stop, ZBox
from lxt_compose.rules.spelling import written


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Stop(), "Stop()"),
        (Pass(), "Pass()"),
        (Epsilon(0.5), "Epsilon(epsilon=0.5)"),
        (Gamma(2.0), "Gamma(gamma=2.0)"),
        (Gamma(2.0, epsilon=0.5), "Gamma(gamma=2.0, epsilon=0.5)"),
        (ZBox(torch.zeros(2, 3), 1.0), "ZBox(low=tensor(2, 3), high=1.0)"),
        (torch.relu, "relu"),
        (1e-6, "1e-06"),
    ],
)
def test_written(value, text):
    assert written(value) == text
