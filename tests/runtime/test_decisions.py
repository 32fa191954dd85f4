"""Decisions about calls: what is kept of one call is taken for another only where both are decided alike."""

from collections import Counter

import numpy as np
import pytest
import torch
from support import Fn, assert_close, both_formulations
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Gamma, Uniform

W = torch.linspace(-1, 1, 16).double().reshape(4, 4)
C = torch.complex(W, W.T)
FIRST = torch.zeros(3, 4, dtype=torch.long)
VARIANTS = {
    "abs": [
        lambda x: x.abs(),
        lambda x: torch.complex(x, 2 * x + 1).abs(),
        lambda x: (x * 1j + x).abs(),
        lambda x: (x.to(C.dtype) @ C).abs(),
    ],
    "pow": [
        lambda x: x.pow(2),
        lambda x: x.abs().pow(0.5),
        lambda x: (x.abs() + 1).pow(-1),
        lambda x: (x.abs() + 1).pow(torch.tensor(2.0)),
        lambda x: (x.abs() + 1).pow(torch.tensor(-2.0)),
        lambda x: (x.abs() + 1).pow(W[:3] + 2),
        lambda x: (x.abs() + 1).pow(W[:3]),
        lambda x: (W[:3] + 2).pow(x),
        lambda x: (-W[:3].abs() - 1).pow(x.round()),
        lambda x: x.pow(np.float32(2)),
        lambda x: (x.abs() + 1).pow(np.float32(-2)),
        lambda x: (x.abs() + 1).pow(x),
    ],
    "rpow": [lambda x: 2.0**x, lambda x: (-2.0) ** x.round(), lambda x: np.float32(2) ** x],
    "vector_norm": [
        lambda x: torch.linalg.vector_norm(x, dim=1),
        lambda x: torch.linalg.vector_norm(x, 0, 1),
        lambda x: torch.linalg.vector_norm(x, ord=0, dim=1),
        lambda x: torch.linalg.vector_norm(x, torch.inf, 1),
        lambda x: torch.linalg.vector_norm(torch.complex(x, x), dim=1),
    ],
    "cdist": [lambda x: torch.cdist(x, W), lambda x: torch.cdist(x, W, 0), lambda x: torch.cdist(x, W, p=0)],
    "matrix_power": [lambda x, n=n: torch.linalg.matrix_power(x.T @ x + W, n) for n in (2, 1, 0, -1)],
    "scatter_reduce": [
        lambda x, how=how: torch.ones(3, 4).double().scatter_reduce(1, FIRST, x, how)
        for how in ("sum", "mean", "amax", "prod")
    ],
    "batch_norm": [
        lambda x: F.batch_norm(x, W[0], W[1] + 1, training=False),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.batch_norm(x, None, None, None, None, True),
    ],
    "dropout": [lambda x: F.dropout(x, 0.0, True), lambda x: F.dropout(x, 0.5, False), lambda x: F.dropout(x, 0.0)],
    "embedding": [
        lambda x: F.embedding(FIRST[0], x),
        lambda x: F.embedding(FIRST[0], x, 0),
        lambda x: F.embedding(FIRST[0], x, scale_grad_by_freq=True),
    ],
    "div": [lambda x: x / (W[:3] + 2), lambda x: W[:3] / (x.abs() + 1), lambda x: x / (x.abs() + 1), lambda x: x / 2j],
    "mul": [
        lambda x: x * 2,
        lambda x: x * W[:3],
        lambda x: x * C[:3],
        lambda x: x * 2j,
        lambda x: x * torch.complex(x, x + 1),
        lambda x: x * (x + 1),
        lambda x: x * (x @ W),
    ],
    "matmul": [lambda x: x @ W, lambda x: W @ x.T, lambda x: x @ x.T, lambda x: x.to(C.dtype) @ C],
    "addmm": [
        lambda x: torch.addmm(x, W[:3], W),
        lambda x: torch.addmm(W[0], x, W),
        lambda x: torch.addmm(x, x, W),
        lambda x: torch.addmm(W[0, :3], x, x.T),
    ],
    "linear": [lambda x: F.linear(x, W), lambda x: F.linear(W[:3], x, W[0, :3]), lambda x: F.linear(W, W, x[0])],
    "where": [lambda x: torch.where(x > 0, x, 0.0), lambda x: torch.where(W[:3] > 0, x, 2.0)],
    "max": [lambda x: torch.max(x), lambda x: torch.max(x, dim=1).values, lambda x: torch.max(x, W[:3])],
    "clamp": [lambda x: x.clamp(0), lambda x: W[:3].clamp(x), lambda x: x.clamp(x - 1, W[:3])],
    "gelu": [lambda x: F.gelu(x), lambda x: F.gelu(x, approximate="tanh")],
    "softplus": [lambda x: F.softplus(x), lambda x: F.softplus(x, 3.0), lambda x: F.softplus(x, threshold=0.1)],
    "var": [lambda x: x.var(1), lambda x: x.var(1, correction=0), lambda x: (x * (1 + 1j)).var(1)],
    "index_put": [
        lambda x: x.index_put((FIRST[:2, 0],), x[:2]),
        lambda x: x.index_put((FIRST[:2, 0],), x[:2], accumulate=True),
    ],
    "softmax": [lambda x: x.softmax(0), lambda x: x.softmax(1), lambda x: x.softmax(-1, dtype=torch.float32)],
}
COMPOSITES = {
    "default": lambda formulation: Composite(formulation=formulation),
    "around": lambda formulation: Composite({"": Gamma()}, formulation=formulation),
    "keys alone": lambda formulation: Composite({torch.mul: Uniform()}, defaults=False, formulation=formulation),
}


def parts_of(functions):
    """Return modules that compute these: with a weight, so that none is taken as one activation."""
    return {
        f"part{i}": Fn(lambda self, x, function=function: function(x), weight=nn.Linear(1, 2))
        for i, function in enumerate(functions)
    }


def explained(model, composite):
    """Return the relevance of each output of a model of one input, and what was done how often."""
    x = torch.linspace(-2, 2, 12).double().reshape(3, 4).requires_grad_()
    found, relevance = composite.formulation == "relevance", []
    with composite.register(model) as registration:
        for z in model(x):
            z = torch.view_as_real(z.resolve_conj()) if z.is_complex() else z
            slot = z.detach() if found else torch.ones_like(z)
            if not z.requires_grad:  # stopped
                relevance.append(torch.zeros_like(x))
                continue
            relevance += torch.autograd.grad(z, x, slot, retain_graph=True, materialize_grads=True)
        rows = Counter()
        for row in registration.report().rows:
            rows[row.target, row.rule, row.status] += row.calls
    return relevance, rows


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "in reverse"])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
@both_formulations
def test_calls_in_one_module_are_those_in_several(formulation, composite, name, order):
    """Whatever calls of one operation differ in: in one module each gets what it gets in a module of its own."""
    calls = VARIANTS[name][::order]
    together = Fn(lambda self, x: [F.linear(x, W), *(call(x) for call in calls)], weight=nn.Linear(1, 2))
    apart = Fn(lambda self, x: [F.linear(x, W), *(part(x) for part in self.children())], **parts_of(calls))
    found, rows = explained(together, composite(formulation))
    expected, expected_rows = explained(apart, composite(formulation))
    for relevance, right in zip(found, expected, strict=True):
        assert_close(relevance, right)
    assert rows == expected_rows


@both_formulations
def test_real_and_complex_lengths_in_one_module(formulation):
    """Of real numbers abs is the identity, of complex ones a length: ``R * x_i ** 2 / |x| ** 2``."""
    model = Fn(lambda self, x: [x.abs(), torch.complex(x, 3 * x).abs()])
    for relevance, right in zip(explained(model, Composite(formulation=formulation))[0], (1, 10**0.5), strict=True):
        x = torch.linspace(-2, 2, 12).double().reshape(3, 4)
        assert_close(relevance if formulation == "relevance" else relevance * x, right * x.abs(), 1e-5)


@both_formulations
@pytest.mark.parametrize("factor", [1j, 1 + 2j, C[:3]], ids=["i", "a number", "a tensor"])
def test_real_factors_of_complex_products(formulation, factor):
    """``x c`` is linear in a real x: gradient times input, which adds up the real and the imaginary part."""
    model = Fn(lambda self, x: [torch.view_as_real(x * factor), torch.view_as_real(torch.complex(x, 2 * x) * x)])
    x = torch.linspace(-2, 2, 12).double().reshape(3, 4)
    expected = [torch.view_as_real(x * factor).sum(-1), 3 * x * x]
    for relevance, right in zip(explained(model, Composite(formulation=formulation))[0], expected, strict=True):
        assert_close(relevance if formulation == "relevance" else relevance * x, right, 1e-5)


@both_formulations
@pytest.mark.parametrize("number", [np.float32(2), np.float64(2), np.int64(2)], ids=lambda x: type(x).__name__)
def test_numbers_of_numpy_are_numbers(formulation, number):
    """A number gets the same relevance whichever library it is of: as an exponent, a summand, a factor, a base."""

    def steps(x, two):
        return [x.abs() ** two, F.relu6(x + two) / two, F.relu6(x * two + two), two**x, (x + two).clamp(-two, two) * x]

    found, plain = (
        explained(Fn(lambda self, x, two=two: steps(x, two)), Composite(formulation=formulation))
        for two in (number, 2.0)
    )
    assert found[1] == plain[1]
    for relevance, right in zip(found[0], plain[0], strict=True):
        assert_close(relevance, right)
