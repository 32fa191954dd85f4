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
