"""Batch and instance norm, given gradients in the memory layout that torch's own backward kernels expect.

``z = (x - mean) / sigma * weight + bias`` has the gradient ``g * weight / sigma`` for fixed statistics. On a CPU, torch
computes another one where its input and the gradient have different strides that are both dense and, since a dimension
has size 1, ambiguous: for a batch of one, ``bn(x).flatten(2).transpose(1, 2)`` hands back a gradient with the strides
of (H W, C). The kernel takes the elements of one of the two in the order of the other. torch 2.13 still does so, in
train and eval mode alike. So the gradient is copied to the strides of the input, where they differ.

Unnecessary once torch's kernels compare the layouts; `tests/runtime/test_norm_gradients.py` says when they do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from ..ops import Family, NormKind, Op
from ..torch_internals import in_transform, is_batched


def with_right_gradient(function: Callable[..., Any], op: Op | None) -> Callable[..., Any]:
    """Return a function of torch as it is, or for batch and instance norm one whose gradient is right in any layout."""
    kind = None if op is None or op.family is Family.UNCOVERED else op.traits.norm
    if kind not in (NormKind.BATCH, NormKind.INSTANCE):
        return function

    @wraps(function)
    def normalized(*args: Any, **kwargs: Any) -> Any:
        z = function(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        if z.requires_grad and z.device.type == "cpu" and not in_transform():
            # instance norm looks at a view of its input in which all samples are channels of one
            layout = torch.preserve_format if kind is NormKind.BATCH else torch.contiguous_format
            strides = torch.empty_like(x, device="meta", memory_format=layout).stride()
            z.register_hook(partial(_laid_out, strides))
        return z

    return normalized


def _laid_out(strides: tuple[int, ...], slot: Tensor) -> Tensor | None:
    """Return the same values with these strides.

    None where it has them, is none, or stands for several gradients inside of vmap.
    """
    if slot is None or is_batched(slot) or slot.stride() == strides:
        return None
    return slot.new_empty_strided(slot.shape, strides).copy_(slot)
