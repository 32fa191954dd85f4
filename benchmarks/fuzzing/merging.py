"""Steps with batch norms behind convolutions: alone, in parallel branches, as subclasses, before tokens are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .steps import ADDS, MERGED, PIECEWISE, Draw, Maker, Wrapped, functions, loaded, step

EPS = 1e-5
CHANNELS, SHAPE = 2, (2, 3, 4)


class Frozen(nn.Module):
    """A batch norm of buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``x * scale + shift``."""
        scale = self.weight * (self.running_var + EPS).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Subclass(nn.BatchNorm2d):
    """A batch norm that calls the function itself."""

    def forward(self, x: Tensor) -> Tensor:
        """The function."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class WithActivation(Subclass):
    """Batch norm and ReLU in one module."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Both."""
        return self.act(super().forward(x))


class Norm(dict[str, Tensor]):
    """The parameters and statistics of a batch norm."""

    def __init__(self, draw: Draw) -> None:
        super().__init__(
            weight=draw.positive(CHANNELS),
            bias=draw(CHANNELS, scale=0.3),
            running_mean=draw(CHANNELS, scale=0.3),
            running_var=draw.positive(CHANNELS),
        )

    def module(self, kind: Callable[[int], nn.Module]) -> nn.Module:
        """Return it as a module."""
        return loaded(kind(CHANNELS), **self)

    def apply(self, x: Tensor) -> Tensor:
        """Return the normalized x."""
        return F.batch_norm(x, self["running_mean"], self["running_var"], self["weight"], self["bias"], False, 0.0, EPS)

    def merged(self, w: Tensor, b: Tensor) -> dict[str, Tensor]:
        """Return weight and bias of a convolution that has it in it."""
        scale = self["weight"] * (self["running_var"] + EPS).rsqrt()
        return {
            "weight": w * scale.reshape(-1, 1, 1, 1),
            "bias": (b - self["running_mean"]) * scale + self["bias"],
        }


def _conv(size: int, **weights: Tensor) -> nn.Module:
    return loaded(nn.Conv2d(CHANNELS, CHANNELS, size, padding=size // 2), **weights)


def _images(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], *SHAPE)


@step(PIECEWISE, ADDS)
def conv_norm_relu(draw: Draw) -> dict[str, Maker]:
    w, b, norm = draw(CHANNELS, CHANNELS, 3, 3, scale=0.4), draw(CHANNELS, scale=0.3), Norm(draw)

    def block(kind: Callable[[int], nn.Module], act: Callable[[], nn.Module]) -> Maker:
        return lambda: Wrapped(
            lambda m, x: m.act(m.norm(m.conv(_images(x)))).reshape(x.shape),
            conv=_conv(3, weight=w, bias=b),
            norm=norm.module(kind),
            act=act(),
        )

    return {
        "BatchNorm2d": block(nn.BatchNorm2d, nn.ReLU),
        "subclass": block(Subclass, lambda: nn.ReLU(inplace=True)),
        "frozen": block(Frozen, nn.ReLU),
        "with activation": block(WithActivation, nn.Identity),
        "functional": lambda: Wrapped(
            lambda m, x: F.relu(norm.apply(m.conv(_images(x)))).reshape(x.shape), conv=_conv(3, weight=w, bias=b)
        ),
        MERGED: lambda: Wrapped(
            lambda m, x: m.conv(_images(x)).relu().reshape(x.shape), conv=_conv(3, **norm.merged(w, b))
        ),
    }


@step(PIECEWISE, ADDS)
def branches(draw: Draw) -> dict[str, Maker]:
    """Two convolutions and the input, each with a norm, summed (RepVGG)."""
    w, b, one = draw(CHANNELS, CHANNELS, 3, 3, scale=0.4), draw(CHANNELS, scale=0.3), Norm(draw)
    v, c, other, own = draw(CHANNELS, CHANNELS, 1, 1), draw(CHANNELS, scale=0.3), Norm(draw), Norm(draw)

    def summed(m: Any, x: Tensor) -> Tensor:
        x = _images(x)
        return torch.relu(m.one(m.large(x)) + m.other(m.small(x)) + m.own(x)).reshape(x.shape[0], 4, 6)

    def block(*kinds: Callable[[int], nn.Module]) -> Maker:
        return lambda: Wrapped(
            summed,
            large=_conv(3, weight=w, bias=b),
            one=one.module(kinds[0]),
            small=_conv(1, weight=v, bias=c),
            other=other.module(kinds[1]),
            own=own.module(kinds[2]),
        )

    return {
        "BatchNorm2d": block(nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm2d),
        "subclass": block(Subclass, nn.BatchNorm2d, Subclass),
        "frozen": block(nn.BatchNorm2d, Frozen, Frozen),
        MERGED: lambda: Wrapped(
            summed,
            large=_conv(3, **one.merged(w, b)),
            one=nn.Identity(),
            small=_conv(1, **other.merged(v, c)),
            other=nn.Identity(),
            own=own.module(nn.BatchNorm2d),
        ),
    }


@step(PIECEWISE, ADDS)
def patches(draw: Draw) -> dict[str, Maker]:
    """A convolution and a norm whose channels become features of tokens."""
    w, b, norm = draw(CHANNELS, CHANNELS, 3, 3, scale=0.4), draw(CHANNELS, scale=0.3), Norm(draw)

    def tokens(x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2).reshape(x.shape[0], 4, 6)

    def block(kind: Callable[[int], nn.Module]) -> Maker:
        return lambda: Wrapped(
            lambda m, x: tokens(m.norm(m.conv(_images(x)))), conv=_conv(3, weight=w, bias=b), norm=norm.module(kind)
        )

    return {
        "BatchNorm2d": block(nn.BatchNorm2d),
        "frozen": block(Frozen),
        **functions({"functions": lambda x, w, b: tokens(norm.apply(F.conv2d(_images(x), w, b, padding=1)))}, w=w, b=b),
        MERGED: lambda: Wrapped(lambda m, x: tokens(m.conv(_images(x))), conv=_conv(3, **norm.merged(w, b))),
    }
