"""One model of a library, what it is given, and what is explained of its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from closing import KeepDouble
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """What is explained.

    Attributes:
        model: in float64, in eval mode.
        inputs: as for ``attribute``.
        goal: makes one number of the output, or one for each sample.
        dims: as for ``attribute``.
    """

    model: nn.Module
    inputs: Any
    goal: Callable[[Any], Tensor]
    dims: Any = None


Maker = Callable[[], Case]


def spread(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, with norms and biases that are not 0 and 1."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.02 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return model.double().eval()


def in_double(model: nn.Module) -> nn.Module:
    """A model whose tensors that are no buffers are in float64 too."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.double())
    return model


def settled(model: nn.Module, *inputs: Any) -> nn.Module:
    """The model with the statistics of these inputs in its batch norms, so that signals reach its end."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(*inputs)
    return model.eval()


def doubly(model: nn.Module) -> nn.Module:
    """The model, in float64 also where it makes or turns something to float32 while it runs: masks, positions."""
    forward = model.forward

    @wraps(forward)
    def in_float64(*args: Any, **kwargs: Any) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with KeepDouble():
                return forward(*args, **kwargs)
        finally:
            torch.set_default_dtype(before)

    model.forward = in_float64
    return model


def numbers(*shape: int) -> Tensor:
    """Random numbers, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def first(output: Any) -> Any:
    """What comes first in an output, or the output."""
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output


def middle(output: Any) -> Tensor:
    """One number for each sample: what an output holds in its middle."""
    found = getattr(output, "sample", None)
    found = first(output) if found is None else found
    return found.flatten(1)[:, found[0].numel() // 2]
