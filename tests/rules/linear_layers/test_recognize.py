"""What is recognized as a linear layer: products with constants, layers of the user's own; and what is refused."""

import oracles
import pytest
import torch
from split_rules import RULES, expected_relevance, relevance
from support import Fn, assert_close, label
from torch import nn
from torch.nn import functional as F

from lxt_compose import AlphaBeta, Composite, Epsilon, Flat, Gamma, RuleError, WSquare, ZBox, ZPlus

PRODUCTS = {
    "matmul": (torch.matmul, lambda x, w: torch.matmul(x, w)),
    "matmul, keywords": (torch.matmul, lambda x, w: torch.matmul(input=x, other=w)),
    "matmul, keywords turned": (torch.matmul, lambda x, w: torch.matmul(other=w, input=x)),
    "operator": (torch.matmul, lambda x, w: x @ w),
    "reversed operator": (torch.matmul, lambda x, w: w.__rmatmul__(x)),
    "from the left": (torch.matmul, lambda x, w: (w.mT @ x.mT).mT),
    "mm": (torch.mm, lambda x, w: torch.mm(mat2=w, input=x)),
    "bmm": (torch.bmm, lambda x, w: torch.bmm(x[None], w[None])[0]),
    "mv": (torch.mv, lambda x, w: torch.stack([torch.mv(w.T, row) for row in x])),
    "einsum": (torch.einsum, lambda x, w: torch.einsum("bi,io->bo", x, w)),
    "einsum, turned": (torch.einsum, lambda x, w: torch.einsum("io,bi->bo", w, x)),
    "einsum of a list": (torch.einsum, lambda x, w: torch.einsum("bi,io->bo", [x, w])),
}


@pytest.mark.parametrize("rule", [Gamma(), AlphaBeta(), WSquare()], ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_an_input_and_a_constant(name, rule):
    key, function = PRODUCTS[name]
    torch.manual_seed(10)
    layer = nn.Linear(3, 2, bias=False).double().requires_grad_(False)
    x, r = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    wanted = expected_relevance(layer, x, r, dict(RULES)[rule])
    assert_close(relevance(Fn(lambda _, x: function(x, layer.weight.T)), x, rule, r, key=key), wanted, 1e-9)


class Own(nn.Module):
    """A linear layer that torch knows nothing of: ``function(x, weight, bias)``."""

    def __init__(self, function, layer):
        super().__init__()
        self.function, self.weight, self.bias = function, layer.weight, layer.bias

    def forward(self, x):
        return self.function(x, self.weight, self.bias)


OWN = {
    "matmul and add": lambda x, w, b: x @ w.T + b,
    "matmul from the left": lambda x, w, b: (w @ x.mT).mT + b,
    "einsum": lambda x, w, b: torch.einsum("...i,oi->...o", x, w) + b,
    "addmm with factors": lambda x, w, b: torch.addmm(b / 2, x.flatten(0, -2), w.T / 4, beta=2, alpha=4).unflatten(
        0, x.shape[:-1]
    ),
    "one linear call among views": lambda x, w, b: F.linear(x.reshape(-1, 3), w, b).reshape(*x.shape[:-1], 2),
    "sum of products": lambda x, w, b: (x[..., None, :] * w).sum(-1) + b,
    "two layers": lambda x, w, b: F.linear(F.linear(x, torch.eye(3, dtype=x.dtype) * 2), w / 2) + b,
    "through fft": lambda x, w, b: F.linear(torch.fft.ifft(torch.fft.fft(x, dim=-1), dim=-1).real, w, b),
}


OWN_AND_RULES = [
    (name, rule, oracle)
    for name in OWN
    for rule, oracle in RULES
    # Rounding of the transforms makes weights of 0 that are not, and these rules see each weight, however small.
    if not isinstance(rule, Epsilon) and not (name == "through fft" and isinstance(rule, (Flat, ZBox)))
]


@pytest.mark.parametrize(("name", "rule", "oracle"), OWN_AND_RULES, ids=label)
def test_own_linear_layers_give_the_numbers_of_linear(name, rule, oracle):
    torch.manual_seed(2)
    layer = nn.Linear(3, 2).double().requires_grad_(False)
    for x in (torch.randn(2, 2, 3, dtype=torch.float64), torch.rand(2, 2, 3, dtype=torch.float64)):
        r = torch.randn(2, 2, 2, dtype=torch.float64)
        wanted = expected_relevance(layer, x, r, oracle)
        assert_close(relevance(Own(OWN[name], layer), x, rule, r), wanted, 1e-9)


def test_own_layer_with_keywords_and_constants_and_one_without_batch():
    torch.manual_seed(3)
    layer = nn.Linear(3, 2).double().requires_grad_(False)
    x, r = torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    wanted = expected_relevance(layer, x, r, oracles.gamma(0.25))

    class Odd(nn.Module):
        def forward(self, scale, *, inputs):
            return (layer.weight * inputs["x"]).sum(1) * scale + layer.bias

    leaf = x.clone().requires_grad_()
    with Gamma().register(module := Odd()):
        module(torch.ones(2, dtype=torch.float64), inputs={"x": leaf}).backward(r)
    assert_close(leaf.grad, wanted, 1e-10)


@pytest.mark.parametrize("rule", [Gamma(), AlphaBeta(), ZPlus(), ZBox(0.0, 1.0), WSquare(), Flat()], ids=str)
def test_layers_that_are_not_linear_are_refused(rule):
    for module in (nn.ReLU(), nn.LayerNorm(3), nn.MaxPool1d(2), nn.Softmax(-1), nn.GroupNorm(1, 3)):
        with pytest.raises(RuleError, match=r"fits layers that are linear.*use Identity\(\).*Norm\(\).*Epsilon\(\)"):
            Composite({"": rule}).register(module)
    x = torch.randn(2, 3, requires_grad=True)
    bent = [lambda _, x: x.relu() @ torch.ones(3, 2), lambda _, x: x * x, lambda _, x: x.clamp(-1, 1) @ torch.eye(3)]
    for key, model in ((F.relu, Fn(lambda _, x: F.relu(x))), *(("", Fn(function)) for function in bent)):
        with Composite({key: rule}).register(model), pytest.raises(RuleError, match="is not: it is not W x"):
            model(x)


def test_weights_that_carry_relevance_are_refused():
    x, w = torch.randn(2, 3, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    with Composite({torch.matmul: Gamma()}).register(model := Fn(lambda _, a, b: a @ b)):
        with pytest.raises(RuleError, match=r"2 tensors carry relevance.*UniformEpsilon"):
            model(x, w)
        model(x, w.detach())


def test_too_large_a_layer_to_differentiate_says_so():
    x = torch.zeros(1, 20000, requires_grad=True)
    with Gamma().register(model := Fn(lambda _, x: torch.fft.fft(x).real)), pytest.raises(RuleError, match="too many"):
        model(x)
