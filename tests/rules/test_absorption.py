"""The constant part of an operation, and its linear part as a derivative, by hand."""

import torch
from support import assert_close
from torch.nn import functional as F
from under_rules import tensor

from lxt_compose.ops import op_of
from lxt_compose.rules.absorption import constant_part, expanded, left_over, linear_part
from lxt_compose.rules.base import OpCall


def call_of(function, *carriers, formulation="relevance"):
    call = OpCall(formulation=formulation, label="here", args=carriers, kwargs={}, op=op_of(function))
    call.take(list(carriers))
    call.output, call.rerun = function(*carriers).detach(), lambda inputs, biases=None: function(*inputs)
    return call


def test_the_linear_part_is_the_jacobian_times_the_values():
    x, v = tensor(3).requires_grad_(), tensor(3, seed=1)
    found = linear_part((x**3).cumsum(0), [x], [v])
    assert_close(found, torch.stack([sum(3 * x[k] ** 2 * v[k] for k in range(i + 1)) for i in range(3)]).detach())


def test_the_constant_part_of_a_sum_is_what_carries_nothing():
    x, constant = tensor(3), tensor(3, seed=1)
    call = OpCall("relevance", "here", (x, constant), {}, op=op_of(torch.add))
    call.take([x])
    call.output, call.rerun = x + constant, lambda inputs, biases=None: inputs[0] + constant
    assert_close(constant_part(call), constant)


def test_an_expansion_leaves_over_what_its_first_order_does_not_give():
    """Of exp: ``J x = x exp(x)``, so ``R (exp(x) - share x exp(x)) / exp(x) = R (1 - share x)`` is left over."""
    x, r = tensor(4), tensor(4, seed=1)
    call = call_of(torch.exp, x)
    assert_close(expanded(call, [0.5]), 0.5 * x * x.exp())
    assert_close(left_over(call, [0.5], 0.0, r), r * (1 - 0.5 * x))


def test_shares_weigh_the_carriers_of_a_product():
    a, b = tensor(3, 4), tensor(2, 4)
    call = call_of(F.linear, a, b)
    assert_close(expanded(call, [0.25, 0.5]), 0.75 * a @ b.T)
