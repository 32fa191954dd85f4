"""Expansion of elementwise functions: values and slopes at 0, or where they are finite, by calculus."""

import math

import pytest
import torch
from torch import nn

from lxt_compose.rules.expansion import expand_function, expand_module, power_of_module


@pytest.mark.parametrize(
    ("function", "at", "value", "slope"),
    [
        (torch.exp, 0.0, 1.0, 1.0),
        (torch.sigmoid, 0.0, 0.5, 0.25),
        (torch.cos, 0.0, 1.0, 0.0),
        (torch.erf, 0.0, 0.0, 2 / math.sqrt(math.pi)),
        (torch.log, 1.0, 0.0, 1.0),
        (torch.logit, 0.5, 0.0, 4.0),
    ],
)
def test_functions(function, at, value, slope):
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    assert expand_function(function, (x,), {}, x) == pytest.approx((at, value, slope), abs=1e-6)


def test_a_root_has_no_finite_slope():
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    assert expand_function(lambda x: x.abs().sqrt(), (x,), {}, x) is None


def test_modules_and_what_is_no_elementwise_function():
    x = torch.linspace(-2, 2, 6).double().view(2, 3)
    softplus = nn.Softplus()
    assert expand_module(softplus, x, softplus(x)) == pytest.approx((0.0, math.log(2), 0.5), abs=1e-6)
    mixes = nn.Softmax(-1)
    assert expand_module(mixes, x, mixes(x)) is None


def test_the_power_with_which_a_module_grows():
    class Power(nn.Module):
        def __init__(self, power):
            super().__init__()
            self.power = power

        def forward(self, x):
            return x.relu() ** self.power

    assert [power_of_module(module) for module in (nn.ReLU(), Power(2), Power(3), Power(1.5))] == [1, 2, 3, 1]
