"""Layers and batch norms, recognized by running copies of them on numbers rather than by their classes.

A layer is anything with a ``weight`` of two or more dimensions that computes ``W x + b`` with it; a batch norm anything
with ``running_mean`` and ``running_var`` that computes ``x * a + c`` for each channel, and maybe an activation of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..torch_internals import clear_hooks, modes_off

Layout = Callable[[Tensor, Tensor, int], Tensor]
"""The weight of a layer of some groups, times a factor for each output channel."""
STATISTICS = ("running_mean", "running_var")
_TOLERANCE = 1e-7


def own(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter or buffer of the module itself, also where a stand-in hides it."""
    return module._parameters.get(name) if name in module._parameters else module._buffers.get(name)


# ---- where the output channels of a weight are -----------------------------------------------------------------------


def _first(weight: Tensor, scale: Tensor, groups: int) -> Tensor:
    """Scale a weight ``[out, in / groups, ...]``, as of linear layers and convolutions."""
    return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))


def _second(weight: Tensor, scale: Tensor, groups: int) -> Tensor:
    """Scale a weight ``[in, out / groups, ...]``, as of transposed convolutions, by groups."""
    grouped = weight.unflatten(0, (groups, -1))
    return (grouped * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))).flatten(0, 1)


def layouts_of(layer: nn.Module, channels: int) -> list[tuple[Layout, int]]:
    """Return the layouts in which the weight has this number of output channels, each with its input channels."""
    weight, groups = own(layer, "weight"), groups_of(layer)
    assert weight is not None
    rows, columns = weight.shape[:2]
    if outputs_of(layer) not in (None, channels):
        return []
    found: list[tuple[Layout, int]] = []
    if rows == channels:
        found.append((_first, columns * groups))
    if columns * groups == channels and rows % groups == 0:
        found.append((_second, rows))
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    return found[::-1] if transposed else found


def outputs_of(layer: nn.Module) -> int | None:
    """Return the number of output channels that a layer names; None if it names none."""
    named: Any = getattr(layer, "out_features", getattr(layer, "out_channels", None))
    return named if isinstance(named, int) else None


def groups_of(layer: nn.Module) -> int:
    """Return the number of groups of a convolution; 1 for other layers."""
    groups: Any = getattr(layer, "groups", 1)
    return groups if isinstance(groups, int) else 1


# ---- candidates ------------------------------------------------------------------------------------------------------


def is_norm(module: nn.Module) -> bool:
    """Return whether a module has running statistics for each channel, or places for them."""
    return set(STATISTICS) <= {*module._buffers, *module._parameters}


def is_layer(module: nn.Module) -> bool:
    """Return whether a module has a weight matrix, its own or a computed one, and may be a layer of it."""
    if is_norm(module) or any(map(is_lazy, module.parameters(recurse=False))):
        return False
    weight = getattr(module, "weight", None)
    inner = module.children() if "parametrizations" not in module._modules else ()
    return isinstance(weight, Tensor) and weight.dim() >= 2 and not any(is_norm(m) for c in inner for m in c.modules())


def norms_inside(layer: nn.Module) -> list[nn.Module]:
    """Return the norms that a layer with a weight of its own holds as children (detectron2's Conv2d)."""
    weight = layer._parameters.get("weight")
    if weight is None or weight.dim() < 2 or is_norm(layer):
        return []
    return [child for child in layer.children() if is_norm(child)]


# ---- trials ----------------------------------------------------------------------------------------------------------


class Trial:
    """Copies of a layer and a norm in float64 on the CPU, without hooks, that are run on numbers without a pattern."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        both = nn.ModuleList([layer, norm])
        twins = copy.deepcopy(both).to("cpu", torch.float64).eval()
        clear_hooks(twins)
        self.layer, self.norm = twins[0], twins[1]
        self.nested = norm in layer.children()

    def inputs(self, channels: int) -> Iterator[Tensor]:
        """Yield inputs with this number of channels, as small as the kernel allows and then larger."""
        weight = own(self.layer, "weight")
        assert weight is not None
        dilation: Any = getattr(self.layer, "dilation", 1)
        dilation = dilation if isinstance(dilation, tuple) else (dilation,)
        for extra in (2, 13):
            spatial = [(k - 1) * int(dilation[i % len(dilation)]) + extra for i, k in enumerate(weight.shape[2:])]
            shape = (2, channels, *spatial)
            count = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64)
            yield 2 * count.square().sin().reshape(shape)

    def reason_against(self, values: tuple[dict[str, Tensor], dict[str, Tensor]], channels: int) -> str:
        """Return why other values in the layer and the norm do not give the same output; empty if they do."""
        layer_values, norm_values = values
        error = "it cannot be run"
        for x in self.inputs(channels):
            try:
                with torch.no_grad(), modes_off():
                    plain, expected = self.layer(x), None if self.nested else self.norm(self.layer(x))
                    self.layer.__dict__.update(layer_values)
                    self.norm.__dict__.update(norm_values)
                    found = self.layer(x) if self.nested else self.norm(self.layer(x))
            except Exception as raised:  # the model's own code, which was not written for this, may raise anything
                error = f"a trial raised {type(raised).__name__}: {raised}"
                continue
            finally:
                for name in (*layer_values, *norm_values):
                    self.layer.__dict__.pop(name, None)
                    self.norm.__dict__.pop(name, None)
            expected = plain if expected is None else expected
            if not isinstance(found, Tensor) or found.shape != expected.shape:
                return "one of them puts out something else than one tensor"
            close = (found - expected).abs().max() <= _TOLERANCE * expected.abs().max()
            return "" if close else "with merged values they compute something else, so one of them is not affine"
        return error

    def is_identity(self, norm_values: dict[str, Tensor]) -> bool:
        """Return whether the norm with these values is the identity, so that it holds no activation."""
        size = norm_values["running_mean"].numel()
        for spatial in ((), (2,), (2, 2), (2, 2, 2)):
            x = 2 * torch.arange(1, 1 + 2 * size * 2 ** len(spatial), dtype=torch.float64).square().sin()
            x = x.reshape(2, size, *spatial)
            self.norm.__dict__.update(norm_values)
            try:
                with torch.no_grad(), modes_off():
                    return torch.allclose(self.norm(x), x, _TOLERANCE, _TOLERANCE)
            except Exception:  # it takes inputs of another number of dimensions
                continue
            finally:
                for name in norm_values:
                    self.norm.__dict__.pop(name, None)
        return False
