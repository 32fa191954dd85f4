"""Chained: a function written in steps gets ``R_a = R (f(a) - f(0)) / f(a)`` as a whole."""

import pytest
import torch
from support import Fn, assert_close
from torch import nn
from under_rules import both, carrier, tensor

WRITTEN = {
    "silu": (lambda x: x / (1 + torch.exp(-x)), 0.0),
    "sigmoid": (lambda x: 1 / (1 + torch.exp(-x)), 0.5),
    "sigmoid + 2": (lambda x: 1 / (1 + torch.exp(-x)) + 2, 2.5),
    "exp of tanh": (lambda x: torch.exp(torch.tanh(x)), 1.0),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_f_is_at_zero_stays_and_the_rest_goes_to_the_source(name):
    function, at_zero = WRITTEN[name]
    x, r = carrier(3, 4), tensor(3, 4, seed=2)
    z = function(x.detach())
    # With parameters, since a module without any is an activation as a whole, and its steps need no rule.
    model = Fn(lambda _, x: function(x), unused=nn.Linear(2, 2))
    assert_close(both(model, [x], {}, r)[0], r * (z - at_zero) / z)
