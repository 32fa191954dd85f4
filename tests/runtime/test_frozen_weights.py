"""Freezing the parameters changes no bit of the model's values, whatever kernel torch picks for frozen weights."""

import pytest
import torch
from support import FORMULATIONS, Fn
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon

X = torch.Generator().manual_seed(0)
SCATTERED = torch.randn(5, 2, 64, generator=X).transpose(0, 1)


def values(model, x, composite):
    model.eval()
    plain = model(x.clone(memory_format=torch.preserve_format).requires_grad_())
    with composite.register(model):
        registered = model(x.clone(memory_format=torch.preserve_format).requires_grad_())
    return plain, registered


def layer(function):
    weight = nn.Parameter(torch.randn(96, 64, generator=X))
    model = Fn(function)
    model.weight, model.bias = weight, nn.Parameter(torch.randn(96, generator=X))
    return model


PRODUCTS = {
    "linear": lambda m, x: F.linear(x, m.weight, m.bias),
    "linear without bias": lambda m, x: F.linear(x, weight=m.weight),
    "matmul": lambda m, x: torch.matmul(x, m.weight.t()),
    "operator": lambda m, x: x @ m.weight.T,
    "vector": lambda m, x: x @ m.weight[0],
    "weight first": lambda m, x: m.weight @ x.transpose(1, 2),
    "computed weight": lambda m, x: F.linear(x, m.weight * 2, m.bias),
    "normalized weight": lambda m, x: x @ F.normalize(m.weight).t(),
    "joined weights": lambda m, x: x @ torch.cat([m.weight, m.weight]).t(),
    "one neuron": lambda m, x: F.linear(x, m.weight[0]),
    "batch of weights": lambda m, x: x @ m.weight.t()[None],
    "part of a weight": lambda m, x: F.linear(x, m.weight.chunk(3)[1], m.bias.chunk(3)[1]),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("rules", [{}, {"": Epsilon()}], ids=["defaults", "one unit"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_scattered_batches(name, rules, formulation):
    plain, registered = values(layer(PRODUCTS[name]), SCATTERED, Composite(rules, formulation=formulation))
    assert torch.equal(plain, registered)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize(
    "key",
    [None, nn.Linear, nn.MultiheadAttention, nn.TransformerEncoderLayer, F.multi_head_attention_forward],
    ids=["defaults", "linear", "attention", "block", "function"],
)
def test_attention_whose_batch_comes_first(key, formulation):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    rules = {} if key is None else {key: Epsilon()}
    plain, registered = values(model, torch.randn(2, 5, 64, generator=X), Composite(rules, formulation=formulation))
    assert torch.equal(plain, registered)


class OfConstants(nn.Module):
    """Attention, or a block, over numbers of the model's own, added to the input."""

    def __init__(self, part):
        super().__init__()
        self.part, self.table = part, nn.Buffer(torch.randn(2, 5, 64, generator=X))

    def forward(self, x):
        given = (self.table,) * (3 if isinstance(self.part, nn.MultiheadAttention) else 1)
        made = self.part(*given)
        return x + (made[0] if isinstance(made, tuple) else made)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize(
    "part",
    [
        lambda: nn.MultiheadAttention(64, 4, batch_first=True),
        lambda: nn.MultiheadAttention(64, 4),
        lambda: nn.TransformerEncoderLayer(64, 4, 128, batch_first=True),
    ],
    ids=["attention", "batch second", "block"],
)
def test_attention_over_constants(part, formulation):
    torch.manual_seed(0)
    plain, registered = values(
        OfConstants(part()), torch.randn(2, 5, 64, generator=X), Composite(formulation=formulation)
    )
    assert torch.equal(plain, registered)


class Biased(nn.Module):
    """Attention with a table of positions that is learned, handed on as it is or computed from."""

    def __init__(self, made):
        super().__init__()
        self.layer, self.table, self.made = nn.Linear(8, 8), nn.Parameter(torch.randn(1, 1, 6, 6, generator=X)), made

    def forward(self, x):
        h = self.layer(x)[:, None]
        return F.scaled_dot_product_attention(h, h, h, attn_mask=self.made(self.table))[:, 0]


MASKS = {
    "itself": lambda table: table,
    "computed": lambda table: table.tanh() * 2,
    "looked up": lambda table: table[..., torch.arange(6)] + torch.zeros(6, 6),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_attention_with_a_mask_that_is_trained(name, dtype, formulation):
    torch.manual_seed(0)
    model = Biased(MASKS[name]).to(dtype)
    x = torch.randn(2, 6, 8, generator=X).to(dtype)
    plain, registered = values(model, x, Composite(formulation=formulation))
    assert torch.equal(plain, registered)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_multi_head_attention_with_a_mask_that_is_trained(formulation):
    torch.manual_seed(0)
    mask = nn.Parameter(torch.randn(5, 5, generator=X))
    model = Fn(
        lambda self, x: self.m(x, x, x, attn_mask=self.mask, need_weights=False)[0], m=nn.MultiheadAttention(8, 2)
    )
    model.mask = mask
    plain, registered = values(model, torch.randn(5, 2, 8, generator=X), Composite(formulation=formulation))
    assert torch.equal(plain, registered)
