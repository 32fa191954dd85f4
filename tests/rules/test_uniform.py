"""Uniform against the paper's equation, elementwise in float64, in both formulations."""

import pytest
import torch
from support import Fn, assert_close, attribute
from torch import nn
from under_rules import both, carrier, relevance, tensor

from lxt_compose import Composite, RuleError, Uniform


def test_uniform():
    a, b, c, r = carrier(3, 4), carrier(4, seed=1), carrier(1, seed=2), tensor(3, 4)
    found = both(lambda a, b, c: (a * b) * c, [a, b, c], {torch.mul: Uniform()}, r)
    assert_close(found[2], (r / 2).sum().reshape(1))
    assert_close(found[0], r / 4)
    assert_close(found[1], (r / 4).sum(0))
    assert_close(relevance(nn.Bilinear(4, 4, 4).double(), [a, tensor(3, 4)], Uniform(), r)[0], r)
    with pytest.raises(RuleError, match=r"input of shape \(3, 4\) and an output of shape \(4, 3\).*UniformEpsilon"):
        relevance(lambda a: a.T, [a], Uniform())
    with pytest.raises(RuleError, match=r"on a module .* needs formulation='relevance'"):
        Composite({nn.ReLU: Uniform()}, formulation="gradient").register(nn.ReLU())


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_a_product_that_is_written_into_a_view_is_shared_like_any_other(formulation):
    """Where what is written into is a view (an einsum, a part of a tensor), autograd leads past it to the whole."""
    torch.manual_seed(0)
    a, x = torch.randn(4, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)

    def of_einsum(x):
        return torch.einsum("nf,gf->ng", x, a).mul_(x)

    def of_a_part(x):
        y = x @ a.T
        y[:, 1:].mul_(x[:, 1:])
        y[:, 0].mul_(x[:, 0])
        return y

    found = [
        attribute(Fn(lambda self, x, f=f: f(x)), x, Composite(formulation=formulation))
        for f in (lambda x: (x @ a.T) * x, of_einsum, of_a_part)
    ]
    for other in found[1:]:
        assert_close(other, found[0])
