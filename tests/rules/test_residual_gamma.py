"""ResidualGamma on sums of all kinds against its equation."""

import oracles
import pytest
import torch
from support import assert_close
from under_rules import both, carrier, relevance, tensor

from lxt_compose import ResidualGamma

SUMS = {
    "a + b": (lambda a, b: a + b, torch.add, 1, 1),
    "in place": (lambda a, b: a.clone().add_(b), torch.add, 1, 1),
    "alpha": (lambda a, b: torch.add(a, b, alpha=2), torch.add, 1, 2),
    "a - b": (lambda a, b: a - b, torch.sub, 1, -1),
    "keywords the other way round": (lambda a, b: torch.sub(other=b, input=a, alpha=3), torch.sub, 1, -3),
    "rsub": (lambda a, b: torch.rsub(a, b, alpha=3), torch.sub, -3, 1),
}


@pytest.mark.parametrize("gamma", [0.25, 1.0, 7.0])
@pytest.mark.parametrize("name", SUMS)
def test_residual_gamma(name, gamma):
    function, key, first, second = SUMS[name]
    a, b, r = carrier(3, 4), carrier(3, 4, seed=1), tensor(3, 4, seed=2)
    wanted = oracles.residual_gamma(first * a.detach(), second * b.detach(), r, gamma)
    found = both(function, [a, b], {key: ResidualGamma(gamma)}, r, 1e-10)
    for x, y in zip(found, wanted, strict=True):
        assert_close(x, y, 1e-12)
    assert_close(found[0] + found[1], r, 1e-12)
    found = relevance(function, [a, a], {key: ResidualGamma(gamma)}, r)
    assert_close(sum(found), r, 1e-12)


def test_residual_gamma_broadcasts_cancels_and_falls_back():
    a, b, r = carrier(3, 1), carrier(4), tensor(3, 4)
    wide = a.detach().expand(3, 4), b.detach().expand(3, 4)
    wanted = oracles.residual_gamma(*wide, r, 1.0)
    found = both(torch.add, [a, b], {torch.add: ResidualGamma()}, r, 1e-10)
    assert_close(found[0], wanted[0].sum(1, keepdim=True), 1e-12)
    assert_close(found[1], wanted[1].sum(0), 1e-12)
    a = torch.tensor([1.0, -1.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([-1.0, 1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    found = relevance(torch.add, [a, b], {torch.add: ResidualGamma(0.5)}, torch.ones(4, dtype=torch.float64))
    assert_close(found[0], torch.tensor([3.0, -2.0, 0.5, 1.0]).double(), 1e-12)
    assert_close(found[1], torch.tensor([-2.0, 3.0, 0.5, 0.0]).double(), 1e-12)
    # with a constant it is Epsilon, and on a block it takes the sums inside
    x, r = carrier(3, 4), tensor(3, 4, seed=1)
    constant = tensor(3, 4, seed=2)
    wanted = x.detach() / (x.detach() + constant) * r
    assert_close(both(torch.add, [x, constant], {torch.add: ResidualGamma()}, r, 1e-4)[0], wanted, 1e-4)
    block = lambda x: x + torch.tanh(x)  # noqa: E731
    assert_close(both(block, [x], ResidualGamma(), r)[0], both(block, [x], {torch.add: ResidualGamma()}, r)[0])
