"""For all tests: random numbers are seeded, and no function mode is left behind in the thread."""

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack


@pytest.fixture(autouse=True)
def _nothing_is_left_on_the_thread():
    torch.manual_seed(0)
    yield
    left = _get_current_function_mode_stack()
    while _get_current_function_mode_stack():
        torch.overrides._pop_mode()
    assert left == []


@pytest.fixture
def model():
    """A small model: a residual with ReLU, a normalization, a layer."""
    from support import Residual

    torch.manual_seed(0)
    return nn.Sequential(Residual(6), nn.LayerNorm(6), nn.Linear(6, 3)).double()
