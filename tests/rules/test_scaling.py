"""Scaling rules: ``R_x = share * x * J^T (R / (z + e sign z))``, with any shares."""

from dataclasses import dataclass

import pytest
import torch
from support import assert_close
from under_rules import both, carrier, relevance, tensor

from lxt_compose.rules.scaling import Scaling


@dataclass(frozen=True)
class Uneven(Scaling):
    def shares(self, call):
        return [0.25, 0.75]


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_each_carrier_gets_its_share_of_a_product(epsilon):
    a, b, r = carrier(3, 4), carrier(4, 2), tensor(3, 2, seed=3)
    found = both(torch.matmul, [a, b], {torch.matmul: Uneven(epsilon)}, r)
    wanted = [torch.zeros(3, 4).double(), torch.zeros(4, 2).double()]
    for i in range(3):
        for j in range(2):
            z = sum(a[i, k] * b[k, j] for k in range(4)).detach()
            for k in range(4):
                part = (a[i, k] * b[k, j]).detach() / (z + epsilon * z.sign()) * r[i, j]
                wanted[0][i, k] += 0.25 * part
                wanted[1][k, j] += 0.75 * part
    for x, y in zip(found, wanted, strict=True):
        assert_close(x, y)


def test_a_share_of_zero_makes_a_constant():
    @dataclass(frozen=True)
    class First(Scaling):
        def shares(self, call):
            return [1.0, 0.0]

    a, b = carrier(3, 4), carrier(3, 4, seed=1)
    found = relevance(torch.mul, [a, b], {torch.mul: First(0.0)})
    assert_close(found[0], (a * b).detach())
    assert found[1] is None
