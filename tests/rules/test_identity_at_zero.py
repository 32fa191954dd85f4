"""Identity where an activation is 0 or its input is."""

from functools import partial

import pytest
import torch
from exact_models import DTYPES
from support import FORMULATIONS, Fn, label
from torch.nn import functional as F

from lxt_compose import Composite

ACTIVATIONS = {
    "silu": (F.silu, 0.5), "gelu": (F.gelu, 0.5), "mish": (F.mish, 0.6), "tanh": (torch.tanh, 1.0), "elu": (F.elu, 1.0),
    "hardswish": (F.hardswish, 0.5), "softsign": (F.softsign, 1.0), "erf": (torch.erf, 2 / torch.pi**0.5),
    "sin": (torch.sin, 1.0), "expm1": (torch.expm1, 1.0),
    "gelu tanh": (partial(F.gelu, approximate="tanh"), 0.5),
}  # fmt: skip


SLOPES = [(name, dtype) for name in ACTIVATIONS for dtype in DTYPES]


# torch's own erf of small numbers is 0 in bfloat16, and so is its quotient
@pytest.mark.parametrize(("name", "dtype"), [each for each in SLOPES if each != ("erf", torch.bfloat16)], ids=label)
def test_identity_has_the_slope_of_the_activation_at_zero(name, dtype):
    """f(x) / x at 0 is the limit, 1/2 for SiLU, and near 0 it does not blow up."""
    function, limit = ACTIVATIONS[name]
    x = torch.tensor([0.0, -0.0, 1e-10, -1e-10, 1e-7, -1e-4], dtype=dtype, requires_grad=True)
    if name == "elu" and x[3] and not function(x)[3]:
        pytest.skip(f"the ELU of torch {torch.__version__} is 0 for small numbers, and so is its quotient")
    with Composite(formulation="gradient").register(Fn(lambda self, x: function(x))) as registration:
        z = registration.model(x)
        z.backward(torch.ones_like(z))
    expected = torch.full_like(x, limit)
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=max(2e-4, 4 * torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("function", [torch.sigmoid, F.softplus, torch.exp, torch.cos, torch.cosh])
def test_functions_that_are_not_zero_at_zero_stay_bounded(function, dtype):
    """f(0) != 0 (sigmoid, softplus): its share of the relevance stays in the bias, so that 0 gets none of it."""
    for formulation in FORMULATIONS:
        x = torch.tensor([0.0, -0.0, 1e-10, -1e-10, 0.5, -2.0], dtype=dtype, requires_grad=True)
        with Composite(formulation=formulation).register(Fn(lambda self, x: function(x))) as registration:
            z = registration.model(x)
            z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))
        found = x.grad if formulation == "relevance" else x.grad * x.detach()
        passed = (z - function(torch.zeros((), dtype=dtype))).detach()
        torch.testing.assert_close(found, passed, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
        assert float(x.grad.abs().max()) < 4
