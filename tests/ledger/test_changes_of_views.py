"""What is changed in place by way of a view: autograd leads past the view to the whole, and the books follow."""

import pytest
import torch
from support import FORMULATIONS, Fn, assert_close
from torch import nn

from lxt_compose import Composite, ResidualGamma, attribute

CONSTANT = torch.randn(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def changed(x, change):
    change(x)
    return x


def added_to_a_part(self, x):
    y = torch.stack([x, self.a(x), self.a(x).sin()])
    y[1:] += self.a(x).tanh()
    return y.sum(0)


def added_elsewhere(self, x):
    y = torch.stack([x, self.a(x), self.a(x).sin()])
    return torch.cat([y[:1], y[1:] + self.a(x).tanh()]).sum(0)


PAIRS = {
    "a part": (added_to_a_part, added_elsewhere),
    "a part, twice": (
        lambda self, x: changed(
            self.a(x).sin(), lambda y: (y[:, 1:].add_(x[:, 1:].cos()), y[:, :2].mul_(x[:, :2].tanh()))
        ),
        lambda self, x: (lambda y: torch.cat([y[:, :2] * x[:, :2].tanh(), y[:, 2:]], 1))(
            self.a(x).sin() + torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:].cos()], 1)
        ),
    ),
    "all of what a layer put out as a view": (
        lambda self, x: changed(self.b(x[:, None]), lambda y: y.add_(CONSTANT))[:, 0],
        lambda self, x: (self.b(x[:, None]) + CONSTANT)[:, 0],
    ),
    "that twice, and by a factor": (
        lambda self, x: changed(
            self.b(x[:, None]), lambda y: (y.add_(CONSTANT), y.mul_(0.5), y.add_(x[:, None].tanh()))
        )[:, 0],
        lambda self, x: ((self.b(x[:, None]) + CONSTANT) * 0.5 + x[:, None].tanh())[:, 0],
    ),
    "a view that is used before": (
        lambda self, x: (lambda y: y.t().sin().t() + changed(y, lambda y: y[:, 1:].add_(x[:, 1:])))(self.a(x)),
        lambda self, x: (lambda y: y.sin() + y + torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1))(self.a(x)),
    ),
    "another view added to a part": (
        lambda self, x: (lambda y: changed(y, lambda y: y[:, 1:3].add_(y[:, 3:])))(self.a(x).sin()),
        lambda self, x: (lambda y: torch.cat([y[:, :1], y[:, 1:3] + y[:, 3:], y[:, 3:]], 1))(self.a(x).sin()),
    ),
    "a product by einsum": (
        lambda self, x: changed(torch.einsum("nf,gf->ng", x, self.a.weight), lambda y: y.mul_(x.cos())),
        lambda self, x: torch.einsum("nf,gf->ng", x, self.a.weight) * x.cos(),
    ),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("what", PAIRS)
def test_the_books_are_those_of_the_same_without_views(what, formulation):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for function in PAIRS[what]:
        torch.manual_seed(0)
        children = {"a": nn.Linear(5, 5, bias=False), "b": nn.Linear(5, 5), "head": nn.Linear(5, 2)}
        model = Fn(lambda self, x, f=function: self.head(f(self, x)), **children).double().eval()
        found.append(attribute(model, x, target=1, composite=Composite(formulation=formulation), ledger=True))
    of_views, plain = found
    assert_close(of_views.relevance, plain.relevance, 1e-4)
    total = of_views.ledger.inputs + sum(of_views.ledger.absorbed.values())
    assert_close(total, of_views.output, 1e-9)
    assert of_views.ledger.unaccounted < 1e-9
    assert not of_views.ledger.books.notes
    for kind in ("bias", "constant"):
        if kind in plain.ledger.absorbed:
            assert_close(of_views.ledger.absorbed[kind], plain.ledger.absorbed[kind], 1e-4)
        elif kind in of_views.ledger.absorbed:
            assert of_views.ledger.absorbed[kind].abs().max() < 1e-4


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("how", [lambda y: y[:, 1:3].add_(y[:, 3:]), lambda y: y.add_(y[:, :1])], ids=["part", "all"])
def test_another_view_of_what_is_changed_is_not_made_by_that(how, formulation):
    """A rule in the way gives the changed tensor, and with it all of its views, new nodes."""
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(0)
    children = {"a": nn.Linear(5, 5, bias=False), "head": nn.Linear(5, 2, bias=False)}
    model = Fn(lambda self, x: self.head(changed(self.a(x).sin(), how)), **children).double().eval()
    composite = Composite({torch.add: ResidualGamma(1.0)}, formulation=formulation)
    found = attribute(model, x, target=1, composite=composite, ledger=True)
    assert found.ledger.unaccounted < 1e-9
    assert_close(found.ledger.inputs, found.relevance.sum(1))
