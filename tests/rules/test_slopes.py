"""Slopes of elementwise functions against their limits and quotients by hand."""

import pytest
import torch
from support import assert_close

from lxt_compose.rules.slopes import ratio, secant


def test_a_secant_is_the_quotient_and_the_derivative_at_its_point():
    x = torch.tensor([-2.0, 0.0, 1e-12, 0.5, 3.0]).double()
    wanted = torch.tensor([torch.expm1(v) / v if abs(v) > 1e-8 else 1.0 for v in x]).double()
    assert_close(secant(0.0, x, x.exp(), 1.0, 1.0), wanted)


def test_a_secant_from_another_point():
    x = torch.tensor([0.5, 2.0, 4.0]).double()
    assert_close(secant(1.0, x, x.log(), 0.0, 1.0), torch.tensor([v.log() / (v - 1) for v in x]).double())


def test_a_secant_is_zero_where_the_output_is():
    x = torch.tensor([-1.0, 2.0]).double()
    assert_close(secant(0.0, x, torch.tensor([0.0, 5.0]).double(), 1.0, 7.0), torch.tensor([0.0, 2.0]).double())


@pytest.mark.parametrize("limit", [0.5, -3.0])
def test_a_ratio_has_the_given_limit_at_zero(limit):
    x = torch.tensor([-2.0, 0.0, 4.0]).double()
    z = torch.tensor([1.0, 0.0, 8.0]).double()
    assert_close(ratio(x, z, limit=limit), torch.tensor([-0.5, limit, 2.0]).double())


def test_a_ratio_is_finite_where_the_function_is_not_zero_at_zero():
    x = torch.tensor([0.0, 1e-310, 1.0]).double()
    found = ratio(x, x.sigmoid())
    assert found.isfinite().all()
    assert_close(found[2], torch.tensor(1.0).double().sigmoid())
