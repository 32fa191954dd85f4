"""Functions that are a formula of others: torch's values, and the relevance of the formula written out."""

import pytest
import torch
from support import Fn, assert_close, attribute, both_formulations

from lxt_compose import Composite, check_conservation, default_rules
from lxt_compose import attribute as explain

C = torch.rand(4, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.5


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(formulation, **options):
    return Composite(formulation=formulation, defaults=default_rules(formulation, epsilon=0.0), strict=True, **options)


def correlation(x):
    covariance = torch.cov(x)
    spread = x.std(1).detach()
    return covariance / (spread[:, None] * spread)


WRITTEN_OUT = {
    "xlogy": (lambda x: torch.xlogy(x, x.abs() + 1), lambda x: x * torch.log(x.abs() + 1)),
    "xlogy of a number": (lambda x: torch.xlogy(2.0, x.abs()), lambda x: 2 * torch.log(x.abs())),
    "xlogy with a number": (lambda x: torch.special.xlogy(x, 2.0), lambda x: x * torch.log(torch.tensor(2.0).double())),
    "xlogy with a constant": (lambda x: torch.xlogy(x, C), lambda x: x * C.log()),
    "xlogy_": (lambda x: (x * 2).xlogy_(C), lambda x: x * 2 * C.log()),
    "xlog1py": (lambda x: torch.special.xlog1py(x, x.abs()), lambda x: x * torch.log1p(x.abs())),
    "corrcoef": (torch.corrcoef, correlation),
    "polar": (lambda x: torch.polar(x.abs(), x).real, lambda x: x.abs() * torch.cos(x)),
    "polar, imaginary": (lambda x: torch.polar(abs=x.abs(), angle=x).imag, lambda x: x.abs() * torch.sin(x)),
}


@both_formulations
@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_relevance_is_that_of_the_formula_written_out(name, formulation):
    (kernel, formula), x = WRITTEN_OUT[name], draw(3, 4)
    weight = draw(*kernel(x).shape, seed=1)
    found, expected = (
        attribute(Fn(lambda self, x, f=f: f(x) * weight), x, exact(formulation)) for f in (kernel, formula)
    )
    assert_close(found, expected, 1e-7)
    with exact(formulation).register(Fn(lambda self, x: kernel(x))) as registration:
        assert torch.equal(registration.model(x.clone().requires_grad_()), kernel(x))


@both_formulations
def test_what_is_zero_times_any_logarithm_is_zero(formulation):
    x = torch.tensor([[0.0, 2.0, 0.0], [-1.0, 0.0, 3.0]], dtype=torch.float64)
    below = torch.tensor([[0.0, 3.0, -1.0], [1.0, 0.0, 2.0]], dtype=torch.float64)
    found = attribute(Fn(lambda self, x: torch.xlogy(x, below)), x, exact(formulation))
    assert_close(found, torch.xlogy(x, below))
    y = below.clone().requires_grad_()
    with exact(formulation).register(Fn(lambda self, y: torch.xlogy(x, y))) as registration:
        registration.model(y).backward(torch.ones_like(y))
    assert torch.isfinite(y.grad).all()


@both_formulations
def test_one_variable_correlates_with_itself_and_with_nothing_else(formulation):
    x = draw(6)
    model = Fn(lambda self, x: torch.corrcoef(x) + x.sum())
    assert torch.isfinite(attribute(model, x, exact(formulation))).all()


@both_formulations
@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_ledgers_close(name, formulation):
    f, x = WRITTEN_OUT[name][0], draw(1, 3, 4)
    model = Fn(lambda self, x: f(x[0]).sum().reshape(1, 1))
    result = explain(model, x, target=0, composite=exact(formulation), ledger=True)
    assert result.report.complete
    assert result.ledger.unaccounted < 1e-9
    leaf = x.clone().requires_grad_()
    with exact(formulation).register(model) as registration, check_conservation(registration, rtol=1e-6):
        y = model(leaf)
        y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
