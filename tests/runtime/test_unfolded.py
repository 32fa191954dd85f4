"""Lengths and quotients of functions that are not 0 where their source is are taken apart, as models write them out."""

import pytest
import torch
from support import Fn, assert_close, both_formulations
from torch import nn

from lxt_compose import Composite, Epsilon

C = torch.linspace(0.5, 2, 6).double()
ALIKE = {
    "a length": [
        lambda x: x.exp().norm(dim=-1),
        lambda x: torch.linalg.vector_norm(x.exp(), dim=-1),
        lambda x: (2 * x).exp().sum(-1).sqrt(),
        lambda x: x.exp().square().sum(-1) ** 0.5,
    ],
    "a length of all elements": [lambda x: x.sigmoid().norm(), lambda x: x.sigmoid().square().sum().sqrt()],
    "a length of order 3": [
        lambda x: torch.linalg.vector_norm(x.cos(), 3, -1, True),
        lambda x: (x.cos().abs() ** 3).sum(-1, keepdim=True) ** (1 / 3),
    ],
    "a hypotenuse": [
        lambda x: torch.hypot(x.flip(-1), x.sigmoid()),
        lambda x: (x.flip(-1) ** 2 + x.sigmoid() ** 2).sqrt(),
    ],
    "a constant over a function": [
        lambda x: C / (1 + (-x).exp()),
        lambda x: C * x.sigmoid(),
        lambda x: torch.div(C.expand(3, 6), 1 + (-x).exp()),
        lambda x: C.expand(3, 6).clone().div_(1 + (-x).exp()),
        lambda x: C * (1 + (-x).exp()).reciprocal(),
    ],
}


def explained(function, formulation, rules=()):
    """Return values and relevance, and the rows of the report."""
    x = torch.linspace(-2, 2, 18).double().reshape(3, 6).requires_grad_()
    model = Fn(lambda self, x: function(x), weight=nn.Linear(1, 2))
    with Composite(rules, formulation=formulation).register(model) as registration:
        z = model(x)
        start = z.detach() if formulation == "relevance" else torch.ones_like(z)
        (slot,) = torch.autograd.grad(z, x, start)
        report = registration.report()
    return z, slot if formulation == "relevance" else slot * x.detach(), report


@both_formulations
@pytest.mark.parametrize("name", ALIKE)
def test_equal_functions_get_equal_relevance(formulation, name):
    (wanted, relevance, report), *others = (explained(function, formulation) for function in ALIKE[name])
    assert report.complete
    for z, found, report in others:
        assert report.complete
        torch.testing.assert_close(z, wanted)
        assert_close(found, relevance, 1e-5 if formulation == "relevance" else 1e-9)  # sums have stabilizers


@both_formulations
def test_values_are_those_of_the_operation(formulation):
    x = torch.linspace(-2, 2, 18).double().reshape(3, 6)
    for function in (function for some in ALIKE.values() for function in some):
        assert torch.equal(explained(function, formulation)[0], function(x))


def test_a_length_of_what_is_0_there_is_one_operation_and_keys_go_first():
    def rules_of(function, rules=()):
        return [(row.target, row.rule) for row in explained(function, "gradient", rules)[2].rows]

    assert ("norm", "Homogeneous(epsilon=0.0)") in rules_of(lambda x: x.tanh().norm(dim=-1))
    assert ("norm", "(taken apart)") in rules_of(lambda x: x.exp().norm(dim=-1))
    assert ("norm", "(taken apart)") not in rules_of(lambda x: x.exp().norm(dim=-1), {torch.norm: Epsilon(0.0)})
    assert ("norm", "(taken apart)") not in rules_of(lambda x: torch.linalg.norm(x.cos(), 2))  # that of a matrix


IN_PLACE = {
    "a quotient": (lambda x: C.expand(3, 6).clone().div_(1 + (-x).exp()), lambda x: C * x.sigmoid()),
    "a hypotenuse": (lambda x: (x * 2).exp().hypot_(x), lambda x: ((4 * x).exp() + x**2).sqrt()),
    "a logarithm": (lambda x: (x * 2).xlogy_(x.exp() + 1), lambda x: x * 2 * (x.exp() + 1).log()),
}


@both_formulations
@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_taken_apart_in_place_leaves_no_node_of_its_own(name, formulation):
    """The graph check, which knows nothing of the report, finds no node that nobody accounts for."""
    function, written_out = IN_PLACE[name]
    x = torch.linspace(-2, 2, 18).double().reshape(3, 6).requires_grad_()
    model = Fn(lambda self, x: function(x), weight=nn.Linear(1, 2))
    with Composite(formulation=formulation).register(model) as registration, registration.ledger() as ledger:
        z = model(x)
        start = z.detach() if formulation == "relevance" else torch.ones_like(z)
        (slot,) = torch.autograd.grad(z, x, start)
    assert torch.equal(z, function(x.detach()))
    assert registration.report().complete
    assert ledger.check.complete, ledger.check
    found = slot if formulation == "relevance" else slot * x.detach()
    assert_close(found, explained(written_out, formulation)[1], 1e-5 if formulation == "relevance" else 1e-9)


@both_formulations
def test_a_leaf_that_needs_grad_is_not_changed(formulation):
    x = torch.linspace(0.5, 2, 18).double().reshape(3, 6).requires_grad_()
    model = Fn(lambda self, x: x.hypot_(x.detach().exp()), weight=nn.Linear(1, 2))
    with Composite(formulation=formulation).register(model), pytest.raises(RuntimeError, match="leaf"):
        model(x)
    assert torch.equal(x, torch.linspace(0.5, 2, 18).double().reshape(3, 6))
