"""Identity and Ratio on activations, also where the input is 0."""

import math

import pytest
import torch
from support import FORMULATIONS, Fn, assert_close
from torch.nn import functional as F
from under_rules import relevance, tensor

from lxt_compose import Composite, Identity, Ratio, RuleError


def gelu_tanh(x):
    return F.gelu(x, approximate="tanh")


ELEMENTWISE = [
    F.relu, F.gelu, F.silu, torch.tanh, F.softsign, F.mish, F.hardswish, F.elu, F.selu, F.leaky_relu, F.hardtanh,
    torch.sin, torch.erf, torch.expm1, torch.sigmoid, F.softplus, torch.exp, torch.cos, gelu_tanh,
]  # fmt: skip


@pytest.mark.parametrize("rule", [Identity(zero_bias=True), Ratio()], ids=str)
@pytest.mark.parametrize("function", ELEMENTWISE, ids=lambda function: function.__name__)
def test_identity_and_ratio(function, rule):
    """``R_x = R_z``; in the gradient formulation ``g f(x) / x``; the two rules agree where nothing is 0."""
    x = torch.cat([tensor(40) * 3, torch.tensor([1e-3, -1e-3, 30.0, -30.0], dtype=torch.float64)]).requires_grad_()
    z = function(x.detach())
    r = torch.randn(44, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * z
    alive, key = z != 0, {F.gelu if function is gelu_tanh else function: rule}
    for formulation in FORMULATIONS:
        leaf = x.detach().clone().requires_grad_()
        with Composite(key, formulation=formulation).register(model := Fn(lambda _, x: function(x))):
            model(leaf).backward(r if formulation == "relevance" else torch.where(alive, r / z, 0))
        found = leaf.grad if formulation == "relevance" else leaf.grad * x.detach()
        assert_close(found[alive], r[alive], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", ELEMENTWISE, ids=lambda function: function.__name__)
def test_identity_at_zero(function, dtype):
    """f(x) / x near 0 and far from it: finite, and the limit where f(0) = 0."""
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([0.0, -0.0, tiny, -tiny, tiny / 4, 1e-10, -1e-10, 1e-4, -1e-4, 20.0, -20.0], dtype=dtype)
    key = F.gelu if function is gelu_tanh else function
    leaf = x.clone().requires_grad_()
    with Composite({key: Identity()}, formulation="gradient").register(model := Fn(lambda _, x: function(x))):
        model(leaf).sum().backward()
    # e^20 / 20 is more than fp16 holds
    assert torch.isfinite(leaf.grad[:-2]).all() or function is torch.exp
    limits = {F.silu: 0.5, F.gelu: 0.5, gelu_tanh: 0.5, torch.erf: 2 / math.sqrt(math.pi)}
    limits |= dict.fromkeys([torch.tanh, F.softsign, torch.sin, torch.expm1, F.elu], 1.0)
    if function in limits:
        assert abs(float(leaf.grad[0]) - limits[function]) < 1e-2


def test_ratio_gives_and_passes_nothing_at_zero():
    """What is special about it: in both formulations a zero neither has relevance nor passes it on."""
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    r = torch.ones(3, dtype=torch.float64)
    assert_close(relevance(F.relu, [x], {F.relu: Ratio()}, r)[0], torch.tensor([0.0, 0.0, 1.0]).double(), 1e-10)
    assert_close(relevance(F.relu, [x], {F.relu: Identity()}, r)[0], r)
    found = relevance(torch.sigmoid, [x], {torch.sigmoid: Ratio()}, r)[0]
    assert_close(found, torch.tensor([1.0, 0.0, 1.0]).double(), 1e-10)
    with pytest.raises(RuleError, match="passes relevance to one input"):
        relevance(torch.mul, [x, x], {torch.mul: Ratio()})


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize(
    "rounded", [torch.round, torch.trunc, lambda x: x.clone().round_()], ids=["round", "trunc", "in place"]
)
def test_rounded_numbers_are_numbers(rounded, formulation):
    """``s * round(x / s)`` is what fake quantization computes; a relevance of 0 would pass for an explanation."""
    x, scale = tensor(40) * 3, 0.25
    z = scale * rounded(x / scale)
    r = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * z
    alive, leaf = z != 0, x.clone().requires_grad_()
    with Composite(formulation=formulation).register(Fn(lambda _, x: scale * rounded(x / scale))) as registration:
        registration.model(leaf).backward(r if formulation == "relevance" else torch.where(alive, r / z, 0))
    found = leaf.grad if formulation == "relevance" else leaf.grad * x
    assert_close(found[alive], r[alive], 1e-5)
    assert registration.report().complete
