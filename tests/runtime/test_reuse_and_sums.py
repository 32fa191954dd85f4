"""Modules called twice, residuals, sums, broadcast operands: relevance is input x gradient elementwise."""

import pytest
import torch
from exact_models import assert_is_input_times_gradient, both_formulations, inputs, linear
from support import Fn, Residual, assert_close, exact, residual

from lxt_compose import Epsilon


@both_formulations
@pytest.mark.parametrize("make", [linear, lambda: Residual(6).double()], ids=["layer", "block"])
def test_a_module_called_twice_gets_input_times_gradient(make, formulation):
    """A module that is called twice in one forward pass keeps the state of each call apart."""
    model = Fn(lambda self, x: self.layer(self.layer(x)), layer=make())
    assert_is_input_times_gradient(model, inputs(4, 6), formulation)
    assert_is_input_times_gradient(model, inputs(4, 6), formulation, {"layer": Epsilon(1e-12)}.items())


@both_formulations
@pytest.mark.parametrize("join", [lambda a, x: a + x, lambda a, x: x + a, torch.add, lambda a, x: a.add_(x)])
def test_a_plain_residual_gets_input_times_gradient(formulation, join):
    """A plain residual ``a(x) + x`` does not return twice the relevance."""
    model = Fn(lambda self, x: join(self.a(x), x), a=linear())
    assert_is_input_times_gradient(model, inputs(4, 6), formulation)
    assert_is_input_times_gradient(residual(), inputs(4, 6), formulation)


@both_formulations
def test_each_part_of_a_sum_gets_its_own_share(formulation):
    """``R_a = a`` and ``R_b = b`` for ``R = a + b``: each input gets its own contribution, not both the same."""
    a, b = inputs(4, 6).requires_grad_(), inputs(4, 6, seed=2).requires_grad_()
    with exact(formulation).register(Fn(lambda self, a, b: a + b)) as registration:
        z = registration.model(a, b)
        z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))
    found = (a.grad, b.grad) if formulation == "relevance" else (a.detach() * a.grad, b.detach() * b.grad)
    assert_close(found[0], a.detach(), 1e-6)
    assert_close(found[1], b.detach(), 1e-6)


@both_formulations
@pytest.mark.parametrize("operation", ["add", "mul", "sub", "matmul"])
def test_relevance_of_broadcast_operands_has_their_shape(operation, formulation):
    """R is reduced to the input's shape: ``a[3, 1] + b[4]`` and ``a * b``."""
    a, b = inputs(3, 1).requires_grad_(), inputs(4, seed=2).requires_grad_()
    with exact(formulation).register(Fn(lambda self, a, b: getattr(torch, operation)(a, b[None]))) as registration:
        z = registration.model(a, b)
        z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))
    found = [t.grad if formulation == "relevance" else t.grad * t.detach() for t in (a, b)]
    a, b = a.detach(), b.detach()
    if operation == "add":
        expected = (a * 4)[..., :1], b * 3
    elif operation == "sub":
        expected = a * 4, -b * 3
    else:  # a product of two: each factor gets half of the relevance of each product that it is part of
        expected = (a * b).sum(1, keepdim=True) / 2, (a * b).sum(0) / 2
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-5)
