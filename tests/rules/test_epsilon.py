"""Epsilon: blocks, sums, broadcast operands, the stabilizer; elementwise in float64, in both formulations."""

import oracles
import pytest
import torch
from support import assert_close
from torch import nn
from under_rules import both, carrier, relevance, tensor

from lxt_compose import Epsilon


def test_epsilon_on_any_block():
    """``R_i = x_i sum_j J_ji R_j / z_j`` for a block with everything in it."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).double()
    x = carrier(1, 4)
    r = torch.randn(1, 3, dtype=torch.float64)
    assert_close(both(block, [x], Epsilon(1e-3), r)[0], oracles.epsilon_of(block, x, r, 1e-3))


def test_epsilon_shares_a_sum_by_what_is_added():
    a, b = carrier(3, 4), carrier(3, 4, seed=1)
    r = tensor(3, 4, seed=2)
    for function, sign in ((torch.add, 1), (torch.sub, -1)):
        found = both(function, [a, b], {function: Epsilon(1e-9)}, r)
        total = a.detach() + sign * b.detach()
        assert_close(found[0], a.detach() / total * r, 1e-5)
        assert_close(found[1], sign * b.detach() / total * r, 1e-5)


def test_the_parts_of_a_sum_get_their_own_share():
    a, b = carrier(5), carrier(5, seed=1)
    found = relevance(lambda a, b: a + b, [a, b], {}, (a + b).detach())
    assert_close(found[0], a.detach(), 1e-5)
    assert_close(found[1], b.detach(), 1e-5)


def test_relevance_is_summed_over_broadcast_dimensions():
    a, b, r = carrier(3, 1), carrier(4), tensor(3, 4)
    total = a.detach() + b.detach()
    found = both(torch.add, [a, b], {torch.add: Epsilon(0.0)}, r)
    assert_close(found[0], (a.detach() / total * r).sum(1, keepdim=True))
    assert_close(found[1], (b.detach() / total * r).sum(0))
    found = both(torch.mul, [a, b], {}, r)
    assert_close(found[0], r.sum(1, keepdim=True) / 2)
    assert_close(found[1], r.sum(0) / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-6])
def test_the_stabilizer_is_signed_and_never_0(dtype, epsilon):
    layer = nn.Linear(2, 1, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    for rows in ([1.0, 1.0], [0.0, 0.0], [1.0, 1.0 + 2 * torch.finfo(dtype).eps]):
        x = torch.tensor([rows], dtype=dtype, requires_grad=True)
        with Epsilon(epsilon).register(layer):
            layer(x).backward(torch.ones(1, 1, dtype=dtype))
        assert torch.isfinite(x.grad).all()
    info = torch.finfo(dtype)
    e = max(epsilon, info.tiny) if epsilon else info.resolution
    x = torch.tensor([[1.0, 1.0]], dtype=dtype, requires_grad=True)
    with Epsilon(epsilon).register(layer):
        layer(x).backward(torch.full((1, 1), e, dtype=dtype))
    assert torch.equal(x.grad, torch.tensor([[1.0, -1.0]], dtype=dtype))
