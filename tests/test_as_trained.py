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
