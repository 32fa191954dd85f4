"""Custom autograd functions that nobody registered are reported."""

import pytest
import torch
from exact_models import both_formulations, inputs
from support import Fn
from torch import nn

from lxt_compose import Composite, Epsilon


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


CUSTOM = {
    "inside": Fn(lambda self, x: Doubled.apply(x) + 1.0),
    "at the end": Fn(lambda self, x: Doubled.apply(x)),
    "in a child": nn.Sequential(Fn(lambda self, x: Doubled.apply(x)), nn.ReLU()),
    "in place after": Fn(lambda self, x: Doubled.apply(x).relu_()),
}


@both_formulations
@pytest.mark.parametrize("where", CUSTOM)
def test_custom_autograd_functions_are_reported(where, formulation):
    """``Function.apply`` passes the function mode by: it is found and reported as uncovered all the same."""
    model = CUSTOM[where]
    with Composite(formulation=formulation).register(model) as registration:
        model(inputs(4, 6).requires_grad_() * 1.0)
        report = registration.report()
    assert not report.complete
    assert [(row.target, row.note) for row in report.uncovered] == [("Doubled.apply", "custom autograd function")]


@both_formulations
def test_a_rule_around_a_custom_function_covers_it(formulation):
    """Inside a module with a rule of its own a custom function is part of that module; the caller's are not ours."""
    for epsilon in (0.0, 1e-6):
        model = nn.Sequential(Fn(lambda self, x: Doubled.apply(x)), nn.ReLU())
        with Composite({"0": Epsilon(epsilon)}, formulation=formulation, strict=True).register(model) as registration:
            Doubled.apply(model(Doubled.apply(inputs(4, 6).requires_grad_())))
            assert registration.report().complete


class NotDifferentiable(torch.autograd.Function):
    """A kernel that marks what it returns as not differentiable."""

    @staticmethod
    def forward(ctx, x):
        y = x * 2
        ctx.mark_non_differentiable(y)
        return y


def test_a_function_whose_outputs_are_not_differentiable_is_named():
    model = Fn(lambda self, x: x + NotDifferentiable.apply(x))
    x = torch.randn(2, 3, requires_grad=True)
    with Composite().register(model) as registration:
        model(x)
    assert registration.report().notes == (
        "cut off by the model itself, so no relevance passes: NotDifferentiable.apply in (model)",
    )
    with Composite().register(Fn(lambda self, x: Halved.apply(x) + x)) as registration:
        registration.model(x)
    assert registration.report().notes == ()


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 0.5

    @staticmethod
    def backward(ctx, slot):
        return slot * 0.5
