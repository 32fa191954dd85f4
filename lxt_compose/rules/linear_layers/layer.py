"""Layers that are linear in their input, ``z = W x + b``: their products with other inputs and with parts of W.

A :class:`Layer` stands for one call. It holds no tensor through which relevance flows, so it may wait for the backward
pass. Stride, groups, padding and batch dimensions are those of the function that was called.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...autograd.sharded import added_up, in_each_process, is_sharded
from ...torch_internals.traces import has_symbolic_shape
from .weight_parts import Part, Parts, ones

Apply = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
Back = Callable[[Tensor, Tensor, Tensor], Tensor]

LAYER_TYPES = (nn.Linear, nn.modules.conv._ConvNd)

_PIECE = 2**23
"""Bytes of an input or output that are processed at a time on a CPU: so much stays in its caches."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of a layer: ``apply(x, weight, bias)``, and ``back(s, weight, x) = W^T s`` in the shape of x.

    Without `back` autograd computes it, for the price of one more product. `bias` is as `apply` takes it, `offset` the
    same as it broadcasts to the output; `one_sample` is the shape of a constant input that is small, but whose output
    still broadcasts to that of x.
    """

    where: str
    parts: Parts
    weight: Tensor
    version: int
    apply: Apply
    back: Back | None = None
    bias: Tensor | None = None
    offset: Tensor | None = None
    one_sample: tuple[int, ...] = ()
    unit: Part = ones
    """The part of the weight that is 1 for each input of a neuron."""
    samples: bool = False
    """Whether the first dimension counts samples, that the layer does not mix."""
    made_in: torch.dtype | None = None
    """The dtype of the output as the model computed it."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which products are computed: the weight's, or float32 where that is half precision."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    @property
    def is_rounded(self) -> bool:
        """Whether the model's own output is in half precision, and so less exact than products are here."""
        return self.made_in not in (None, self.dtype)

    def part(self, part: Part) -> Tensor:
        """Return a part of the weight.

        Raises:
            RuntimeError: the weight was changed in place since the layer ran.
        """
        if self.weight._version != self.version:
            raise RuntimeError(
                f"the weight of {self.where} was changed in place between the forward and the backward pass; "
                f"call backward() before the weights are updated"
            )
        return self.parts.get(self.weight, part, self.dtype)

    def product(self, x: Tensor, part: Part, bias: Part | None = None) -> Tensor:
        """Return the output for any input, with a part of the weight, and with a part of the bias or without one."""
        added = None if bias is None or self.bias is None else bias(self.bias.to(self.dtype))
        return added_up(self.apply(x, self.part(part), added))

    def transpose(self, s: Tensor, part: Part, x: Tensor) -> Tensor:
        """Return ``(part of W)^T s``: what comes back to an input like x."""
        weight = self.part(part)
        if self.back is not None:
            return added_up(self.back(s, weight, x))
        with torch.enable_grad():
            x = torch.zeros_like(x, requires_grad=True)
            return added_up(torch.autograd.grad(self.apply(x, weight, None), x, s)[0]).contiguous()

    def of_constant(self, value: Tensor | float, part: Part, x: Tensor) -> Tensor:
        """Return the product, without the bias, with a constant that broadcasts to x; it broadcasts to z."""
        value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
        fits = value.dim() <= len(self.one_sample) and all(
            size in (1, wanted) for size, wanted in zip(value.shape[::-1], self.one_sample[::-1], strict=False)
        )
        value = value.expand(self.one_sample if fits else x.shape)
        return self.product(in_each_process(value, x) if is_sharded(x) else value, part)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context without autocast, which would compute products of the backward pass in half precision."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def in_pieces(layer: Layer, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return ``function(*tensors)``, computed for a few samples at a time if there are many.

    That takes less memory, and on a CPU less time.
    """
    if not layer.samples or any(map(has_symbolic_shape, tensors)):
        return function(*tensors)
    size = max(tensor.nbytes for tensor in tensors)
    if size <= _PIECE or tensors[0].device.type != "cpu":
        return function(*tensors)
    step = max(1, len(tensors[0]) * _PIECE // size)
    pieces = zip(*(tensor.split(step) for tensor in tensors), strict=True)
    result: Tensor | None = None
    for number, piece in enumerate(pieces):
        found = function(*piece)
        if result is None:
            result = found.new_empty((len(tensors[0]), *found.shape[1:]))
        result[number * step : (number + 1) * step] = found
    assert result is not None
    return result
