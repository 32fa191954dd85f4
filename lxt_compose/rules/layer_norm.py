"""Layer norm with its statistic held constant, by what torch's own layer norm computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..autograd.functions import Slots, bypass
from ..ops import Argument
from ..torch_internals import layer_norm_rstd

_SIZE, _WEIGHT = Argument(1, "normalized_shape"), Argument(2, "weight")


def of_layer_norm(
    carriers: Sequence[Tensor], z: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor | None:
    """Return the output of a layer norm in the gradient formulation, by the statistic that the layer has computed."""
    rstd = layer_norm_rstd(z)
    if rstd is None:
        return None
    weight, size = _WEIGHT.of(args, kwargs), tuple(_SIZE.of(args, kwargs))
    saved = (rstd,) if weight is None else (rstd, weight)
    return bypass(partial(layer_norm_step, size), z, saved, carriers, own=True)


def layer_norm_step(size: tuple[int, ...], slot: Tensor, rstd: Tensor, weight: Tensor | None = None) -> Slots:
    """Return the slot of the input of a layer norm of this size from that of its output."""
    return (layer_norm_backward(slot, size, rstd, weight),)


def layer_norm_backward(slot: Tensor, size: tuple[int, ...], rstd: Tensor, weight: Tensor | None) -> Tensor:
    """Return ``rstd * (weight * slot - mean(weight * slot))`` over the last dimensions, of this size, in one pass.

    By torch's own backward of layer norm. Its derivative of sigma is proportional to the input less the mean: for a
    zero input with mean 0 there is none.
    """
    zero, mean = torch.zeros_like(slot), torch.zeros_like(rstd)
    backward = torch.ops.aten.native_layer_norm_backward
    result: Tensor = backward(slot.contiguous(), zero, size, mean, rstd, weight, None, [True, False, False])[0]
    return result
