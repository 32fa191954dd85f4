"""Stabilizers that users give."""

import oracles
import pytest
import torch
from split_rules import expected_relevance, relevance
from support import assert_close
from torch import nn

from lxt_compose import AlphaBeta, Epsilon, Gamma, Stabilizer


@pytest.mark.parametrize("stabilizer", [
    Stabilizer(0.1), Stabilizer(0.1, clip=True), Stabilizer(0.1, norm_scale=True), Stabilizer(0.1, True, True, (1,)),
    lambda z: z + 0.2 * torch.where(z >= 0, 1.0, -1.0).to(z),
])  # fmt: skip
def test_stabilizers(stabilizer):
    """Any function of the denominator: added, clipped, or relative to the root mean square of a sample's outputs."""
    torch.manual_seed(9)
    layer = nn.Linear(3, 4).double().requires_grad_(False)
    x, r = torch.randn(2, 3).double(), torch.randn(2, 4).double()
    active = torch.rand(2, 3).double()

    def kept_from_zero(z):
        sign = torch.where(z >= 0, 1.0, -1.0).double()
        if not isinstance(stabilizer, Stabilizer):
            return z + 0.2 * sign
        e = 0.1 * (z.square().mean().sqrt() if stabilizer.norm_scale else 1.0)
        return sign * torch.maximum(z.abs(), torch.as_tensor(e, dtype=z.dtype)) if stabilizer.clip else z + e * sign

    for rule, oracle in (
        (Gamma(0.5, stabilizer), oracles.gamma(0.5, stabilize=kept_from_zero)),
        (Epsilon(stabilizer), oracles.gamma(0.0, stabilize=kept_from_zero)),
        (AlphaBeta(2.0, 1.0, stabilizer), oracles.alpha_beta(2.0, 1.0, stabilize=kept_from_zero)),
    ):
        assert_close(relevance(layer, x, rule, r), expected_relevance(layer, x, r, oracle), 1e-9)
        wanted = expected_relevance(layer, active, layer(active).relu(), oracle)
        assert_close(relevance(layer, active, rule, layer(active).relu()), wanted, 1e-9)


@pytest.mark.parametrize("dim", [0, (0,), -1, (0, 1)])
def test_the_dimensions_may_be_one_number(dim):
    z = torch.tensor([[3.0, 4.0], [0.0, -12.0]]).double()
    root = z.square().mean(dim, keepdim=True).sqrt()
    sign = torch.where(z >= 0, 1, -1)
    assert_close(Stabilizer(0.5, norm_scale=True, dim=dim)(z), z + 0.5 * sign * root)


@pytest.mark.parametrize("dim", ["1", 1.0, True, [0], (0, None)])
def test_what_is_no_dimension_is_told(dim):
    with pytest.raises(TypeError, match="dim must be a dimension or a tuple of dimensions"):
        Stabilizer(norm_scale=True, dim=dim)
