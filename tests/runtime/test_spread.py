"""A sum of products with powers that is divided by the sum of the powers is a sum weighted by a softmax."""

import pytest
import torch
from support import FORMULATIONS, Fn
from torch import nn

from lxt_compose import Composite, presets

GROUPS = torch.tensor([0, 0, 1, 1, 1])
MEMBERS = [GROUPS == 0, GROUPS == 1]
Z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
V = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


def values_of(x):
    """Values for the weights to be spread over, which are carriers too."""
    return x.flip(0) * 2


def summed_over_lines(e, v):
    return (e * v).sum(-1, keepdim=True) / e.sum(-1, keepdim=True)


def without_the_dimension(e, v):
    return ((v * e).sum(-1) / e.sum(-1))[:, None]


def divided_first(e, v):
    return (v * e / e.sum(-1, keepdim=True)).sum(-1, keepdim=True)


def scaled(e, v):
    return (e * v).mean(-1, keepdim=True) / e.mean(-1, keepdim=True)


LINES = [summed_over_lines, without_the_dimension, divided_first, scaled]


def by_index(e, v):
    return zeros(3, 2).index_add(1, GROUPS, e * v) / zeros(3, 2).index_add(1, GROUPS, e)


def by_scatter(e, v):
    index = GROUPS.expand(3, 5)
    return zeros(3, 2).scatter_add(1, index, v * e) / zeros(3, 2).scatter_add(1, index, e)


def with_features(e, v):
    """As graph libraries aggregate messages: weights [.., edges], values [.., edges, features]."""
    messages = e[..., None] * (v[..., None] * V)
    total = zeros(3, 2).index_add(1, GROUPS, e)
    return (zeros(3, 2, 4).index_add(1, GROUPS, messages) / total[..., None]).sum(-1) / V.sum(-1).repeat(1)[0]


def explained(function, preset, formulation):
    """Values, relevance and books of the sum of all outputs."""
    leaf, model = Z.clone().requires_grad_(), Fn(lambda self, x: function(x), weight=nn.Linear(1, 1))
    value = model(Z)
    composite = getattr(presets, preset)(formulation=formulation)
    with composite.register(model) as registration, registration.ledger() as books:
        z = model(leaf)
        start = z.detach() if formulation == "relevance" else torch.ones_like(z)
        (slot,) = torch.autograd.grad(z, leaf, start)
    assert torch.equal(z, value)
    assert registration.report().complete
    assert books.unaccounted < 1e-8
    return slot if formulation == "relevance" else slot * Z


def of_lines(x):
    return (torch.softmax(x, -1) * values_of(x)).sum(-1, keepdim=True)


def of_groups(x):
    v = values_of(x)
    return torch.stack([(torch.softmax(x[:, m], -1) * v[:, m]).sum(-1) for m in MEMBERS], 1)


def of_features(x):
    v = values_of(x)[..., None] * V
    weights = [torch.softmax(x[:, m], -1)[..., None] for m in MEMBERS]
    found = torch.stack([(w * v[:, m]).sum(1) for w, m in zip(weights, MEMBERS, strict=True)], 1)
    return found.sum(-1) / V.sum(-1).repeat(1)[0]


CASES = [(f, of_lines) for f in LINES] + [(by_index, of_groups), (by_scatter, of_groups), (with_features, of_features)]


@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp", "relp"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize(("function", "same"), CASES, ids=[function.__name__ for function, _ in CASES])
def test_it_gets_the_relevance_of_torch_softmax(function, same, formulation, preset):
    expected = explained(same, preset, formulation)
    for shift in (0.0, lambda x: x.amax(-1, keepdim=True)):
        found = explained(
            lambda x, s=shift: function((x - (s(x) if callable(s) else s)).exp(), values_of(x)), preset, formulation
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


OTHERS = {
    "terms in no group": lambda e, v: zeros(3, 2).index_add(1, GROUPS, e * v) / (e * 2)[:, :2],
    "another sum": lambda e, v: (e * v).sum(-1) / e[:, :3].sum(-1),
    "other groups": lambda e, v: zeros(3, 2).index_add(1, GROUPS, e * v) / zeros(3, 2).index_add(1, 1 - GROUPS, e),
    "weighted terms": lambda e, v: (e * v).sum(-1) / (e * torch.arange(1, 6)).sum(-1),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_quotient_by_something_else_is_none(name, formulation):
    model = Fn(lambda self, x: OTHERS[name](x.exp(), values_of(x)), weight=nn.Linear(1, 1))
    with Composite(formulation=formulation).register(model) as registration:
        model(Z.clone().requires_grad_())
    assert not any("by hand" in row.target for row in registration.report().rows)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_values_may_be_powers_too(formulation):
    """``sum of exp(x) exp(y) over sum of exp(x)``, whichever factor stands first."""
    expected = explained(lambda x: (x.softmax(-1) * values_of(x).exp()).sum(-1), "attnlrp", formulation)
    for product in (torch.mul, lambda e, v: v * e):
        found = explained(
            lambda x, p=product: p(x.exp(), values_of(x).exp()).sum(-1) / x.exp().sum(-1), "attnlrp", formulation
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_powers_that_were_changed_since_are_not_divided(formulation):
    def changed(x):
        e = x.exp()
        weighted = (e * values_of(x)).sum(-1)
        total = e.sum(-1)
        e.mul_(2)
        return weighted / total + e.sum(-1)

    model = Fn(lambda self, x: changed(x), weight=nn.Linear(1, 1))
    leaf = Z.clone().requires_grad_()
    with Composite(formulation=formulation).register(model) as registration:
        z = model(leaf)
    assert torch.equal(z, changed(Z))
    assert registration.report().complete
