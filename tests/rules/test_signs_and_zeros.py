"""Rules at negative inputs, small denominators and rows of zeros, in every dtype."""

import pytest
import torch
from exact_models import DTYPES, both_formulations, inputs, linear
from support import assert_close, attribute, label
from torch import nn
from torch.nn import functional as F

from lxt_compose import AlphaBeta, Attention, Composite, Epsilon, Gamma, Pass, Stabilizer


@both_formulations
@pytest.mark.parametrize(("alpha", "beta", "expected"), [(1.0, 0.0, (-1.0, 0.0)), (2.0, 1.0, (-2.0, 0.5))])
def test_the_bias_counts_once_in_alpha_beta(alpha, beta, expected, formulation):
    """W = (1, -1), b = -1, x = (1, 1): for R = -1 AlphaBeta gives (-1, 0) with 1, 0 and (-2, 1/2) with 2, 1."""
    layer = nn.Linear(2, 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
        layer.bias.fill_(-1.0)
    composite = Composite({nn.Linear: AlphaBeta(alpha, beta)}, formulation=formulation)
    found = attribute(layer, torch.ones(1, 2).double(), composite)
    assert_close(found, torch.tensor([expected]).double(), 1e-5)


@both_formulations
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_inputs_are_split_as_well_as_weights(alpha, formulation):
    """Positive contributions are ``(x w)+``, from negative inputs with negative weights too."""
    layer, x, beta = linear(), inputs(5, 6), alpha - 1
    contributions = x[:, None, :] * layer.weight.detach()
    bias = layer.bias.detach()
    positive, negative = contributions.clamp(min=0), contributions.clamp(max=0)
    z = layer(x).detach()
    share = alpha * positive / (positive.sum(-1) + bias.clamp(min=0) + 1e-6)[..., None]
    share = share - beta * negative / (negative.sum(-1) + bias.clamp(max=0) - 1e-6)[..., None]
    expected = (share * z[..., None]).sum(1)
    found = attribute(layer, x, Composite({nn.Linear: AlphaBeta(alpha, beta)}, formulation=formulation))
    assert_close(found, expected)


@both_formulations
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("rule", [Epsilon(1e-12), Epsilon(0.0), Gamma(), AlphaBeta(), Attention(1e-12)], ids=label)
def test_the_stabilizer_is_signed_and_survives_every_dtype(rule, dtype, formulation):
    """w = (1, -1), x = (1, 1) and z near -e are finite: sign(0) = +1, and e is at least the dtype's resolution."""
    layer = nn.Linear(2, 1, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    key = "" if isinstance(rule, (Epsilon, Gamma, AlphaBeta)) else F.linear
    for other in (1.0, 1.0 + 1e-6, 1.0 + 1e-8, 1 + 1e-2, 1 + 1e-3):
        x = torch.tensor([[1.0, other]], dtype=dtype, requires_grad=True)
        with Composite({key: rule}, formulation=formulation).register(layer):
            z = layer(x)
            z.backward(torch.ones_like(z))
        assert torch.isfinite(x.grad).all()


SIGNED = [  # contributions 1 and -1.5, R = 1, e = 1/2
    (Epsilon(0.5), (-1.0, 1.5)),  # over -1/2 - 1/2
    (Epsilon(Stabilizer(0.5)), (-1.0, 1.5)),
    (Gamma(0.0, 0.5), (-1.0, 1.5)),
    (Gamma(1.0, 0.5), (-0.4, 1.2)),  # 1 and -3 over -2 - 1/2
    (AlphaBeta(2.0, 1.0, 0.5), (4 / 3, -0.75)),  # 2 * 1 over 1 + 1/2, -1 * -1.5 over -1.5 - 1/2
]


@both_formulations
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize(("rule", "expected"), SIGNED, ids=label)
def test_the_stabilizer_has_the_sign_of_the_sum(rule, expected, dtype, formulation):
    """``z = -e``: without a sign the sum would be divided by 0."""
    layer = nn.Linear(2, 1, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    x = torch.tensor([[1.0, 1.5]], dtype=dtype, requires_grad=True)
    with Composite({nn.Linear: rule}, formulation=formulation).register(layer):
        z = layer(x)
        z.backward(torch.ones_like(z) if formulation == "relevance" else 1 / z.detach())
    found = x.grad if formulation == "relevance" else x.grad * x.detach()
    torch.testing.assert_close(found, torch.tensor([expected], dtype=dtype))


@both_formulations
@pytest.mark.parametrize("rule", [Epsilon(), Gamma(), AlphaBeta(), AlphaBeta(1.0, 0.0), Pass()], ids=label)
def test_rows_of_zeros_give_finite_relevance(rule, formulation):
    """Where x is 0, or a whole row of it (after ReLU), relevance is finite, and 0 but for rules that hand R on."""
    layer = linear()
    with torch.no_grad():
        layer.bias.zero_()
    x = inputs(4, 6)
    x[1] = 0
    x[2:, ::2] = 0
    found = attribute(layer, x, Composite({nn.Linear: rule}, formulation=formulation))
    assert torch.isfinite(found).all()
    if not isinstance(rule, Pass):
        assert found[x == 0].count_nonzero() == 0
