"""Probes: what bias and stabilizer keep, found by added inputs, is what the rule's equation says."""

import pytest
import torch
from support import assert_close
from torch import nn
from under_rules import tensor

from lxt_compose import Gamma
from lxt_compose.rules import probes

seen = []


class Seen(Gamma):
    """Gamma, which notes the layers that it was given."""

    def pull(self, layer, *given):
        seen.append(layer)
        return super().pull(layer, *given)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_bias_and_stabilizer_of_the_epsilon_rule(epsilon, bias):
    """Gamma(0): ``R b / (z + e sign z)`` and ``R e sign z / (z + e sign z)``."""
    torch.manual_seed(3)
    module = nn.Linear(4, 3, bias=bias).double().requires_grad_(False)
    x, r, rule = tensor(2, 4), tensor(2, 3, seed=1), Seen(0.0, epsilon)
    with rule.register(module):
        z = module(x.clone().requires_grad_())
        z.backward(r)
    layer, z = seen[-1], z.detach()
    stabilized = z + epsilon * z.sign()
    constant = module.bias if bias else torch.zeros(3).double()
    assert_close(probes.in_bias(rule, layer, r, x), r * constant / stabilized, 1e-5)
    assert_close(probes.in_stabilizer(rule, layer, r, x), r * epsilon * z.sign() / stabilized, 1e-5)
