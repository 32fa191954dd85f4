"""Custom autograd functions that nobody registered are reported."""

import pytest
import torch
from exact_models import both_formulations, inputs
from support import Fn
from torch import nn

from lxt_compose import AttributionError, Composite, Epsilon, attribute


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
    with Composite().register(Fn(lambda self, x: Doubled.apply(x) + x)) as registration:
        registration.model(x)
    assert registration.report().notes == ()


def test_a_function_whose_results_are_not_used_is_named():
    """Before torch 2.13 its node cannot be asked for anything once they are gone."""
    model = Fn(lambda self, x: (Doubled.apply(x) is None) or x * 3)
    with Composite().register(model) as registration:
        model(torch.randn(2, 3, requires_grad=True))
    assert registration.report().notes == (
        "cut off by the model itself, so no relevance passes: Doubled.apply in (model)",
    )


@torch.library.custom_op("unregistered::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@both_formulations
@pytest.mark.parametrize(
    "cut",
    [
        lambda y: torch.quantize_per_tensor(y, 0.05, 0, torch.qint8),
        lambda y: torch.quantize_per_channel(
            y, torch.full((3,), 0.05), torch.zeros(3, dtype=torch.long), 1, torch.qint8
        ),
    ],
)
def test_quantized_numbers_end_relevance_and_are_uncovered(cut, formulation):
    model = nn.Sequential(nn.Linear(3, 3), Fn(lambda self, x: x + cut(x).dequantize()), nn.Linear(3, 2))
    x = torch.randn(2, 3, requires_grad=True)
    with Composite(formulation=formulation).register(model) as registration:
        model(x)
    (row,) = registration.report().uncovered
    assert "no backward" in row.note


def test_an_operator_without_a_derivative_is_told():
    model = nn.Sequential(nn.Linear(3, 3), Fn(lambda self, x: doubled(x)))
    with pytest.raises(AttributionError, match=r"unregistered.doubled.*register_operation"):
        attribute(model.eval(), torch.randn(2, 3), target=1)


@both_formulations
@pytest.mark.parametrize("ledger", [True, False])
def test_parts_in_inference_mode_are_named(formulation, ledger):
    layer = nn.Linear(3, 3)

    def forward(self, x):
        with torch.inference_mode():
            y = layer(x)
        return x + y.clone()

    result = attribute(
        Fn(forward).eval(), torch.randn(2, 3), target=1, composite=Composite(formulation=formulation), ledger=ledger
    )
    assert "without gradients" in result.report.notes[0]


@pytest.mark.parametrize("ledger", [True, False])
def test_sparse_numbers_inside_and_at_the_end(ledger):
    weight = torch.randn(3, 3, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64)
    composite = Composite(formulation="gradient")
    for forward in (lambda self, x: torch.sparse.mm(x.to_sparse(), weight), lambda self, x: (x @ weight).to_sparse()):
        result = attribute(Fn(forward).eval(), x, target=1, composite=composite, ledger=ledger)
        torch.testing.assert_close(result.relevance, x * weight[:, 1])


@torch.library.custom_op("unregistered_tests::into", mutates_args=("out",))
def into(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x.tanh())


def test_a_kernel_that_writes_its_result_into_an_argument_ends_relevance_which_the_report_says():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            out = torch.empty_like(x)
            into(x, out)
            return self.layer(out + x)

    with Composite().register(Net()) as registration:
        registration.model(torch.randn(2, 4, requires_grad=True))
    (row,) = registration.report().uncovered
    assert row.target == "torch.ops.unregistered_tests.into"
    assert "no backward, so relevance ends there" in row.note
