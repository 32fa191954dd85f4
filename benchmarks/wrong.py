"""Inputs on which other libraries give a wrong relevance, with the right one worked out by hand."""

import copy
from collections.abc import Callable
from typing import Any

import peers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon, Gamma, Identity, MergeBatchNorm, TaylorDecomposition


class Net(nn.Module):
    """A function of an input and one layer, ``2 x + 1`` unless it is given."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        if layer is None:
            layer = nn.Linear(1, 1).double()
            nn.init.constant_(layer.weight, 2.0), nn.init.constant_(layer.bias, 1.0)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The function of the layer and the input."""
        return self.function(self.layer, x)


def difference() -> nn.Module:
    """``x1 - x2`` as a layer."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    return layer


def told(job: Callable[[], Tensor]) -> str:
    """The numbers that a job gives, or its error."""
    try:
        return ", ".join(f"{value:.4g}" for value in job().flatten().tolist())
    except Exception as reason:  # what a library raises is the finding
        return f"{type(reason).__name__}: {reason}"[:60]


def backward(module: Callable[[Tensor], Tensor], x: Tensor, r: Tensor | None = None) -> Tensor:
    """What flows back to x for r, or for the output itself."""
    x = x.clone().requires_grad_()
    y = module(x)
    return torch.autograd.grad(y, x, y.detach() if r is None else r)[0]


def with_rule(net: Net, rule: Any, x: Tensor, r: Tensor | None = None) -> Tensor:
    """The same with a rule of Zennit or tdhook on the layer."""
    net.requires_grad_(False)
    rule.register(net.layer)
    return backward(net, x, r)


def with_us(net: Net, x: Tensor, r: Tensor | None = None, formulation: str = "relevance") -> Tensor:
    """The same with ours."""
    with Composite({nn.Linear: Epsilon(), nn.SiLU: Identity()}, formulation=formulation).register(net):
        return backward(net, x, r)


def by_gamma(layer: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    """Our gamma rule without the bias."""
    with Gamma(1.0, zero_bias=True).register(layer):
        return backward(layer, x, r)


def by_taylor(layer: nn.Module, x: Tensor) -> Tensor:
    """Our Taylor decomposition at 0."""
    with TaylorDecomposition(0.0).register(layer):
        return backward(layer, x)


def normed() -> nn.Module:
    """``x`` as a layer, and a batch norm with mean 0, variance 1 and eps 1."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, eps=1.0)).double().eval().requires_grad_(False)
    nn.init.ones_(model[0].weight)
    return model


def merged_by_zennit(canonizers: Any, model: nn.Module, x: Tensor) -> Tensor:
    """What a model computes while Zennit has its batch norm merged."""
    canonizers.SequentialMergeBatchNorm().apply(model)
    return model(x)


def merged_by_us(model: nn.Module, x: Tensor) -> Tensor:
    """The same while we have."""
    with Composite(canonizers=[MergeBatchNorm()]).register(model):
        return model(x.clone().requires_grad_()).detach()


def probes() -> list[list[str]]:
    """Rows of library, input, right, theirs and ours; without those that a newer release of theirs has right."""
    z, t = peers.load("zennit.rules"), peers.load("tdhook.attribution.lrp_helpers.rules")
    wrap, f = peers.load("lxt.explicit.rules"), peers.load("lxt.explicit.functional")
    canonizers = peers.load("zennit.canonizers")
    one, half = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float16)
    rows: list[list[str]] = []

    def row(
        library: Any, name: str, given: str, right: str, theirs: Callable[[], Tensor], ours: Callable[[], Tensor]
    ) -> None:
        rows.append([name, given, right, told(theirs) if library else "-", told(ours)])

    twice, residual = lambda layer, x: layer(layer(x)), lambda layer, x: layer(x) + x
    row(
        z,
        "Zennit",
        "l(l(x)), l(x) = 2x + 1, x = 1, Epsilon",
        "4",
        lambda: with_rule(Net(twice), z.Epsilon(), one),
        lambda: with_us(Net(twice), one),
    )
    for library, name, rule in ((z, "Zennit", "Epsilon"), (t, "tdhook", "EpsilonRule")):
        row(library, name, "l(x) + x, l(x) = 2x + 1, x = 1, Epsilon", "3",
            lambda lib=library, rule=rule: with_rule(Net(residual), getattr(lib, rule)(), one),
            lambda: with_us(Net(residual), one))  # fmt: skip
        row(library, name, "x1 - x2 at (1, 1) in float16, R = 1, Epsilon", "finite",
            lambda lib=library, rule=rule: with_rule(
                Net(lambda layer, x: layer(x), difference().half()), getattr(lib, rule)(), half, half[:, :1]),
            lambda: with_us(Net(lambda layer, x: layer(x), difference().half()), half, half[:, :1]))  # fmt: skip
        row(library, name, "layer called by keyword, l(input=x), x = 1", "2",
            lambda lib=library, rule=rule: with_rule(
                Net(lambda layer, x: layer(input=x)), getattr(lib, rule)(), one),
            lambda: with_us(Net(lambda layer, x: layer(input=x)), one))  # fmt: skip
    biased, at = difference().double(), torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    biased.bias = nn.Parameter(torch.tensor([-3.0], dtype=torch.float64), requires_grad=False)
    row(
        z,
        "Zennit",
        "x1 - x2 - 3 at (2, 1), R = 1, Gamma(1), bias left out",
        "1.333, -0.3333",
        lambda: with_rule(
            Net(lambda layer, x: layer(x), copy.deepcopy(biased)), z.Gamma(1.0, zero_params="bias"), at, one
        ),
        lambda: by_gamma(copy.deepcopy(biased), at, one),
    )
    row(
        wrap,
        "LXT",
        "x1 - x2 at (1, 1) in float16, R = 1, EpsilonRule",
        "finite",
        lambda: backward(wrap.EpsilonRule(difference().half().requires_grad_(False)), half, half[:, :1]),
        lambda: with_us(Net(lambda layer, x: layer(x), difference().half()), half, half[:, :1]),
    )
    near = torch.tensor([[1.0, 1.0 + 1e-8]], dtype=torch.float64)
    row(
        wrap,
        "LXT",
        "x1 - x2 at (1, 1 + 1e-8), R = 1, EpsilonRule(1e-8)",
        "below 1e8",
        lambda: backward(wrap.EpsilonRule(difference().double().requires_grad_(False)), near, one),
        lambda: with_us(Net(lambda layer, x: layer(x), difference().double()), near, one),
    )
    x = torch.tensor([[1.0, 2.0], [0.0, 4.0]], dtype=torch.float64)
    s = torch.softmax(x, 0)
    right = x * (x - s * x.sum(0, keepdim=True))
    row(
        f,
        "LXT",
        "softmax(x, dim=0), x = ((1, 2), (0, 4)), R = x",
        told(lambda: right),
        lambda: backward(lambda x: f.softmax(x, 0), x, x),
        lambda: with_us(Net(lambda _, x: F.softmax(x, 0)), x, x),
    )
    row(
        t,
        "tdhook",
        "Softmax(0) of the same",
        told(lambda: right),
        lambda: with_rule(Net(lambda layer, x: layer(x), nn.Softmax(0)), t.SoftmaxEpsilonRule(), x, x),
        lambda: with_us(Net(lambda _, x: F.softmax(x, 0)), x, x),
    )
    row(
        t,
        "tdhook",
        "SiLU at 0, PseudoIdentityRule: f(x)/x",
        "0.5",
        lambda: with_rule(Net(lambda layer, x: layer(x), nn.SiLU()), t.PseudoIdentityRule(), 0 * one, one),
        lambda: with_us(Net(lambda layer, x: layer(x), nn.SiLU()), 0 * one, one, "gradient"),
    )
    row(
        wrap,
        "LXT",
        "l(x) = 2x + 1, x = 1, TaylorDecompositionRule at 0",
        "2",
        lambda: backward(wrap.TaylorDecompositionRule(Net(lambda layer, x: layer(x)), (0 * one,)), one),
        lambda: by_taylor(Net(lambda layer, x: layer(x)), one),
    )
    row(
        canonizers,
        "Zennit",
        "batch norm merged, 1 / sqrt(1 + eps) for x = 1, eps = 1: y",
        "0.7071",
        lambda: merged_by_zennit(canonizers, normed(), one),
        lambda: merged_by_us(normed(), one),
    )
    row(
        f,
        "LXT",
        "mean over two dimensions of ones(2, 2), R = 1",
        "0.25 each",
        lambda: backward(lambda x: f.mean(x, (0, 1), False), torch.ones(2, 2), torch.tensor(1.0)),
        lambda: with_us(Net(lambda _, x: x.mean((0, 1))), torch.ones(2, 2), torch.tensor(1.0)),
    )
    return [row for row in rows if row[3] != row[2]]
