"""One operation or module under one rule: relevance in float64, in each formulation."""

import math

import torch
from support import FORMULATIONS, Fn, assert_close
from torch import nn

from lxt_compose import Composite
from lxt_compose.rules import Rule


def tensor(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape) + math.prod(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def relevance(function, inputs, rules, r=None, formulation="relevance", **options):
    """The relevance of each input for the relevance r of the output (R = z * 1 if it is left out)."""
    model = function if isinstance(function, nn.Module) else Fn(lambda _, *xs: function(*xs))
    wanted = model(*inputs)
    leaves = [x.detach().clone().requires_grad_() if x.requires_grad else x for x in inputs]
    if isinstance(rules, Rule):
        rules = {"": rules}
    with Composite(rules, formulation=formulation, **options).register(model):
        z = model(*leaves)
        assert torch.equal(z, wanted)
        r = z.detach() if r is None else r
        z.backward(r if formulation == "relevance" else r / z.detach())
    pairs = [(x.detach(), x.grad) for x in leaves if x.requires_grad]
    return [g if formulation == "relevance" or g is None else x * g for x, g in pairs]


def carrier(*shape, seed=0):
    return tensor(*shape, seed=seed).requires_grad_()


def both(function, inputs, rules, r=None, tolerance=1e-8, **options):
    """The relevance, which must come out the same in both formulations for R = z * g."""
    found, other = (relevance(function, inputs, rules, r, form, **options) for form in FORMULATIONS)
    for a, b in zip(found, other, strict=True):
        assert_close(a, b, tolerance)
    return found
