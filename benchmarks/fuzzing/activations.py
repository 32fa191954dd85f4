"""Steps without weights that act elementwise or on single lines: activations, gates, softmax, selections."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .steps import (
    ADDS,
    ELEMENTWISE,
    HELD,
    OFFSET,
    PIECEWISE,
    SOFTMAX,
    WIDTH,
    Draw,
    Maker,
    Wrapped,
    functions,
    loaded,
    plain,
    step,
)


class Unit(nn.Module):
    """An activation that a user wrote: one module without children."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function."""
        return self.function(x)


class HardSigmoid(nn.Module):
    """As published with MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``relu6(x + 3) / 6``."""
        return self.relu(x + 3) / 6


class HardSwish(nn.Module):
    """As published with MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = HardSigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """``x * hard_sigmoid(x)``."""
        return x * self.sigmoid(x)


def activation(
    name: str,
    module: Callable[[], nn.Module],
    made: dict[str, Callable[[Tensor], Tensor]],
    *traits: str,
    units: dict[str, Callable[[Tensor], Tensor]] | None = None,
    modules: dict[str, Callable[[], nn.Module]] | None = None,
) -> None:
    """Enter an activation: a module, functions, modules that a user wrote, with one way to write it each."""

    def spellings(draw: Draw) -> dict[str, Maker]:
        own = {f"own {key}": lambda function=function: Unit(function) for key, function in (units or {}).items()}
        return {"module": module, **functions(made), **own, **(modules or {})}

    step(*traits, ELEMENTWISE, name=name)(spellings)


activation(
    "relu",
    nn.ReLU,
    {
        "F.relu": F.relu,
        "x.relu()": lambda x: x.relu(),
        "clamp": lambda x: x.clamp(min=0),
        "clamp_min": lambda x: torch.clamp_min(x, 0.0),
        "relu_": lambda x: x.clone().relu_(),
        "in place": lambda x: F.relu(x * 1.0, inplace=True),
        "threshold": lambda x: F.threshold(x, 0.0, 0.0),
        "where": lambda x: torch.where(x > 0, x, 0.0),
        "mask": lambda x: x * (x > 0),
        "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
        "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    },
    PIECEWISE,
    modules={
        "nn.ReLU(inplace=True)": lambda: nn.Sequential(
            nn.Identity(), Wrapped(lambda m, x: m.act(x.clone()), act=nn.ReLU(True))
        )
    },
)
activation(
    "leaky_relu",
    nn.LeakyReLU,
    {
        "F.leaky_relu": F.leaky_relu,
        "where": lambda x: torch.where(x > 0, x, 0.01 * x),
        "maximum": lambda x: torch.maximum(x, 0.01 * x),
    },
    PIECEWISE,
)
activation(
    "gelu",
    nn.GELU,
    {
        "F.gelu": F.gelu,
        "erf": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
        "erf, other order": lambda x: (torch.erf(x * 2**-0.5) + 1) * x / 2,
    },
    units={
        "erf": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
        "erf, other order": lambda x: x * (torch.erf(x * 2**-0.5) + 1) / 2,
    },
)
activation(
    "gelu_tanh",
    lambda: nn.GELU("tanh"),
    {
        "F.gelu": lambda x: F.gelu(x, approximate="tanh"),
        "tanh": lambda x: 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x * x * x))),
    },
    units={
        "tanh": lambda x: 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0)))),
    },
)
activation(
    "silu",
    nn.SiLU,
    {
        "F.silu": F.silu,
        "in place": lambda x: F.silu(x.clone(), inplace=True),
        "x * sigmoid": lambda x: x * torch.sigmoid(x),
        "sigmoid * x": lambda x: x.sigmoid() * x,
        "quotient": lambda x: x / (1 + torch.exp(-x)),
        "logistic": lambda x: x * (1 / (1 + (-x).exp())),
    },
    units={"x * sigmoid": lambda x: x * F.sigmoid(x)},
    modules={"nn.Sigmoid": lambda: Wrapped(lambda m, x: x * m.gate(x), gate=nn.Sigmoid())},
)
activation(
    "hardswish",
    nn.Hardswish,
    {
        "F.hardswish": F.hardswish,
        "F.hardsigmoid": lambda x: x * F.hardsigmoid(x),
        "relu6": lambda x: x * F.relu6(x + 3) / 6,
        "clamp": lambda x: x * (x + 3).clamp(0, 6) / 6,
    },
    modules={"nested": HardSwish},
    units={"relu6": lambda x: x * F.relu6(x + 3) / 6},
)
activation(
    "mish",
    nn.Mish,
    {
        "F.mish": F.mish,
        "softplus": lambda x: x * torch.tanh(F.softplus(x)),
        "log": lambda x: torch.tanh(torch.log(1 + torch.exp(x))) * x,
    },
    units={"by hand": lambda x: x * torch.tanh(F.softplus(x))},
)
activation(
    "tanh",
    nn.Tanh,
    {
        "torch.tanh": torch.tanh,
        "tanh_": lambda x: x.clone().tanh_(),
        "sigmoid": lambda x: 2 * torch.sigmoid(2 * x) - 1,
        "quotient": lambda x: (1 - torch.exp(-2 * x)) / (1 + torch.exp(-2 * x)),
    },
)
activation(
    "elu",
    nn.ELU,
    {
        "F.elu": F.elu,
        "celu": F.celu,
    },
)
activation(
    "squared_relu",
    lambda: Unit(lambda x: torch.relu(x).square()),
    {
        "** 2": lambda x: F.relu(x) ** 2,
        "square": lambda x: x.relu().square(),
        "pow": lambda x: torch.pow(x.relu(), 2),
        "x * x": lambda x: x.relu() * x.relu(),
    },
)
SIGMOIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.sigmoid": torch.sigmoid,
    "sigmoid_": lambda x: x.clone().sigmoid_(),
    "logistic": lambda x: 1 / (1 + torch.exp(-x)),
    "quotient": lambda x: x.exp() / (x.exp() + 1),
    "tanh": lambda x: (torch.tanh(x * 0.5) + 1) / 2,
    "mirrored": lambda x: 1 - torch.sigmoid(-x),
    "power": lambda x: (1 + (-x).exp()) ** -1,
}
activation("sigmoid", nn.Sigmoid, SIGMOIDS, OFFSET)
activation(
    "softplus",
    nn.Softplus,
    {"F.softplus": F.softplus, "log1p": lambda x: torch.log1p(x.exp())},  # log(1 + exp(x)) is 0 where that is not
    OFFSET,
)
activation(
    "hardsigmoid",
    nn.Hardsigmoid,
    {
        "F.hardsigmoid": F.hardsigmoid,
        "relu6": lambda x: F.relu6(x + 3) / 6,
        "clamp": lambda x: (x / 6 + 0.5).clamp(0, 1),
        "in place": lambda x: (x + 3).clamp_(0, 6).div_(6),
    },
    OFFSET,
    modules={"nested": HardSigmoid},
)
plain("exp", {"torch.exp": lambda x: torch.exp(x * 0.3), "x.exp()": lambda x: (x * 0.3).exp()}, OFFSET, ELEMENTWISE)
plain("cos", {"torch.cos": torch.cos, "x.cos()": lambda x: x.cos()}, OFFSET, ELEMENTWISE)
plain(
    "abs",
    {"abs": torch.abs, "x.abs()": lambda x: x.abs(), "where": lambda x: torch.where(x > 0, x, -x)},
    PIECEWISE,
    ELEMENTWISE,
)


# ---- gates -----------------------------------------------------------------------------------------------------------


plain(
    "gate",
    {
        "torch.sigmoid": lambda a, b: a * torch.sigmoid(b),
        "sigmoid first": lambda a, b: b.sigmoid() * a,
        "F.glu": lambda a, b: F.glu(torch.cat([a, b], -1)),
        "in place": lambda a, b: a.clone().mul_(b.sigmoid()),
        "F.sigmoid, mul": lambda a, b: torch.mul(F.sigmoid(b), a),
        "quotient": lambda a, b: a / (1 + (-b).exp()),
        "logistic": lambda a, b: a * (1 / (1 + torch.exp(-b))),
        "reciprocal": lambda a, b: (1 + torch.exp(-b)).reciprocal() * a,
        "einsum": lambda a, b: torch.einsum("ntd,ntd->ntd", a, b.sigmoid()),
        **{f"by {name}": lambda a, b, s=sigmoid: a * s(b) for name, sigmoid in SIGMOIDS.items()},
    },
    ELEMENTWISE,
    operands=2,
)
plain(
    "swiglu",
    {
        "silu * b": lambda a, b: F.silu(a) * b,
        "b * silu": lambda a, b: b * F.silu(a),
        "a * sigmoid * b": lambda a, b: a * torch.sigmoid(a) * b,
        "b * (a * sigmoid)": lambda a, b: b * (a * a.sigmoid()),
        "mul_": lambda a, b: F.silu(a).mul_(b),
    },
    ELEMENTWISE,
    operands=2,
)
plain(
    "mixing_gate",
    {
        "g a + (1 - g) b": lambda a, b, c: torch.sigmoid(c) * a + (1 - torch.sigmoid(c)) * b,
        "lerp": lambda a, b, c: torch.lerp(b, a, torch.sigmoid(c)),
        "difference": lambda a, b, c: b + torch.sigmoid(c) * (a - b),
    },
    ELEMENTWISE,
    operands=3,
)


@step(ADDS)
def squeeze(draw: Draw) -> dict[str, Maker]:
    """A gate of its own mean, as in squeeze-and-excitation."""
    w, b = draw(WIDTH, WIDTH), draw(WIDTH, scale=0.3)

    def block(gate: nn.Module) -> Maker:
        return lambda: Wrapped(
            lambda m, x: x * m.gate(m.layer(x.mean(1, keepdim=True))),
            gate=gate,
            layer=loaded(nn.Linear(WIDTH, WIDTH), weight=w, bias=b),
        )

    return {
        "nn.Sigmoid": block(nn.Sigmoid()),
        **functions(
            {
                "torch.sigmoid": lambda x, w, b: torch.sigmoid(F.linear(x.mean(1, keepdim=True), w, b)) * x,
                "expanded": lambda x, w, b: x * F.linear(x.mean(1), w, b).sigmoid()[:, None].expand_as(x),
            },
            w=w,
            b=b,
        ),
    }


# ---- softmax ---------------------------------------------------------------------------------------------------------


def _exponentials(z: Tensor) -> Tensor:
    e = z.exp()
    return e / e.sum(-1, keepdim=True)


def _in_groups(z: Tensor) -> Tensor:
    """Each line is a group, as the edges of a node are in graph attention."""
    index = torch.arange(z.numel() // z.shape[-1]).repeat_interleave(z.shape[-1])
    e = (z - z.detach().amax(-1, keepdim=True)).exp().flatten()
    total = torch.zeros(z.numel() // z.shape[-1], dtype=z.dtype).index_add(0, index, e) + 1e-16
    return (e / total[index]).view_as(z)


SOFTMAXES: dict[str, Callable[[Tensor], Tensor]] = {
    "F.softmax": lambda z: F.softmax(z, -1),
    "x.softmax": lambda z: z.softmax(dim=-1),
    "torch.softmax": lambda z: torch.softmax(z, -1),
    "exp / sum": _exponentials,
    "two exps": lambda z: z.exp() / z.exp().sum(-1, keepdim=True),
    "max subtracted": lambda z: _exponentials(z - z.amax(-1, keepdim=True)),
    "max detached": lambda z: _exponentials(z - z.max(-1, keepdim=True).values.detach()),
    "reciprocal": lambda z: (e := (z - z.max()).exp()) * e.sum(-1, keepdim=True).reciprocal(),
    "exp2": lambda z: (e := torch.exp2(z / math.log(2))) / e.sum(-1)[..., None],
    "groups": _in_groups,
    "exp of log_softmax": lambda z: F.log_softmax(z, -1).exp(),
    "exp of z - logsumexp": lambda z: (z - z.logsumexp(-1, keepdim=True)).exp(),
}
_OR_HELD = {**SOFTMAXES, HELD: lambda z: z.detach().softmax(-1)}
plain("softmax", _OR_HELD, SOFTMAX)
plain(
    "attention_pooling",
    {
        name: lambda a, b, s=softmax: (s(b.mean(-1)[:, None]) @ a).expand_as(a) + 0.5 * a
        for name, softmax in _OR_HELD.items()
    },
    SOFTMAX,
    operands=2,
)


def _less_log_sum(z: Tensor) -> Tensor:
    return z - z.exp().sum(-1, keepdim=True).log()


plain(
    "log_softmax",
    {
        "F.log_softmax": lambda x: F.log_softmax(x, -1),
        "x.log_softmax": lambda x: x.log_softmax(-1),
        "x - log sum": _less_log_sum,
        "max subtracted": lambda x: _less_log_sum(x - x.amax(-1, keepdim=True)),
        "x - logsumexp": lambda x: x - torch.logsumexp(x, -1, keepdim=True),
        "log of softmax": lambda x: F.softmax(x, -1).log(),
        HELD: lambda x: x.detach().log_softmax(-1),
    },
    SOFTMAX,
    ADDS,
)
