"""Weights that a model does not hold as its own are constants, as its own are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon, attribute
from lxt_compose.errors import RegistrationError


def _linear(rows: int, columns: int) -> nn.Linear:
    return nn.Linear(rows, columns, bias=False).double()


class Hidden(nn.Module):
    """A layer in a plain list, which ``model.parameters()`` does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.heads = _linear(4, 6), [_linear(6, 3)]

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[0](self.first(x))


class WithTensor(nn.Module):
    """A weight that is a plain tensor and requires grad."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = _linear(4, 6), torch.randn(3, 6).double().requires_grad_()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.first(x), self.weight)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 4).double()


@pytest.mark.parametrize("kind", [Hidden, WithTensor])
@pytest.mark.parametrize("composite", [Composite(), Composite(formulation="gradient")])
def test_weights_that_are_hidden_get_no_share(kind: type[nn.Module], composite: Composite, x: Tensor) -> None:
    model = kind()
    weights = [model.heads[0].weight] if isinstance(model, Hidden) else [model.weight]
    found = attribute(model, x, target=1, composite=composite, ledger=True)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(found.relevance, x * gradient, rtol=1e-3, atol=1e-4)
    assert "constants, and keys by module do not reach them" in found.report.notes[0]
    assert all(weight.requires_grad and weight.grad is None for weight in weights)


def test_weights_of_a_target_function_get_no_share(x: Tensor) -> None:
    model, probe = _linear(4, 6), _linear(6, 3)
    whole = attribute(nn.Sequential(model, probe, nn.Sigmoid()), x, target=1)
    found = attribute(model, x, target=lambda out: probe(out)[:, 1].sigmoid())
    torch.testing.assert_close(found.relevance, whole.relevance)
    assert found.report.notes == ()
    assert probe.weight.requires_grad


def test_modules_that_come_later_are_constants_and_named(x: Tensor) -> None:
    model = nn.Sequential(_linear(4, 6), nn.ReLU())
    leaf = x.clone().requires_grad_()
    with Composite().register(model) as registration:
        model.append(_linear(6, 3))
        model[0].requires_grad_(True)
        y = model(leaf)[:, 1]
        y.backward(y.detach())
        with pytest.raises(RegistrationError, match="weights that it does not hold as its own"):
            torch.autograd.grad(model(leaf)[:, 1].sum(), leaf, create_graph=True)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.sum(1), y.detach(), rtol=1e-4, atol=1e-9)
    assert "they are constants" in registration.report().notes[0]
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_leaf_of_the_users_own_keeps_its_share_and_is_named(x: Tensor) -> None:
    model = WithTensor()
    leaf = x.clone().requires_grad_()
    with Composite().register(model) as registration:
        y = model(leaf)[:, 1]
        y.backward(y.detach())
    assert leaf.grad is not None
    assert model.weight.grad is not None
    torch.testing.assert_close(leaf.grad.sum() + model.weight.grad.sum(), y.sum().detach(), rtol=1e-4, atol=1e-9)
    assert "a tensor that requires grad and is no input" in registration.report().notes[0]


class Kept(nn.Module):
    """Computes a table from its parameters once, and keeps it with its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.angles, self.last, self.table = nn.Parameter(torch.rand(4).double()), _linear(4, 3), None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = (2 * self.angles).cos()
        return self.last(x * self.table)


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_what_was_computed_from_parameters_before_is_a_constant(formulation: str, x: Tensor) -> None:
    model = Kept()
    (expected,) = torch.autograd.grad(model(x.requires_grad_())[:, 1].sum(), x)  # fills the table, while weights train
    leaf = x.detach().clone().requires_grad_()
    with Composite(formulation=formulation).register(model) as registration:
        y = model(leaf)[:, 1]
        y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
    assert leaf.grad is not None
    found = leaf.grad if formulation == "relevance" else leaf.detach() * leaf.grad
    torch.testing.assert_close(found, x.detach() * expected, rtol=1e-3, atol=1e-5)
    assert registration.report().complete
    model(x)[:, 1].sum().backward()  # the table has kept its graph
    assert model.angles.grad is not None


def test_weights_that_a_parametrization_keeps_are_constants(x: Tensor) -> None:
    model = nn.utils.parametrizations.weight_norm(_linear(4, 3)).eval()
    expected = attribute(model, x, target=1, composite="epsilon_plus")
    with nn.utils.parametrize.cached():
        model(x)
        found = attribute(model, x, target=1, composite="epsilon_plus")
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=0, atol=0)


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_a_rule_for_a_whole_model_leaves_it_to_its_operations_where_weights_carry(formulation: str, x: Tensor) -> None:
    model = nn.Sequential(_linear(4, 6), nn.ReLU(), _linear(6, 3))
    weights = {name: w.detach().clone().requires_grad_() for name, w in model.named_parameters()}
    leaf = x.clone().requires_grad_()
    with Composite({"": Epsilon()}, formulation=formulation).register(model) as registration:
        y = torch.func.functional_call(model, weights, (leaf,))[:, 1]
        y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
    parts = [leaf, *weights.values()]
    found = sum((t.grad if formulation == "relevance" else t.detach() * t.grad).sum() for t in parts)  # type: ignore
    torch.testing.assert_close(found, y.sum().detach(), rtol=1e-3, atol=1e-6)
    assert "its weights carry relevance themselves" in str(registration.report().rows[0].note)
