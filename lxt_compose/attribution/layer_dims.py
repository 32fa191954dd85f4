"""Names of the dimensions of a layer's tensor, by its module or by modules that ran before or after it.

A rectifier does not say which dimension holds channels; the convolution before it, whose output has the same shape,
does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.trees import tensors_in
from ..ops.dimensions import Names, dimensions_of_module
from ..torch_internals import modes_off
from .axes import BATCH, Dims, completed

_Event = tuple[torch.Size, Names]
Met = tuple[int, torch.Size, Names | None]
"""A tensor as it was seen: how many shapes were noted before, its own shape, and the names by its module."""


class LayerDims:
    """Records the shapes of modules' outputs while a model runs, with the names that the modules give to dimensions.

    Args:
        model: the model.
        inputs: the dimensions of the inputs' relevance, each with its shape.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, tuple[torch.Size, Dims]]) -> None:
        self._model, self._inputs = model, inputs
        self._events: list[_Event] = []
        self._asked: dict[str, Met] = {}

    def watch(self, stack: ExitStack) -> None:
        """Put hooks on all modules that may name dimensions, until the stack is closed."""
        for module in self._model.modules():
            if next(module.children(), None) is None or hasattr(module, "batch_first"):
                stack.callback(module.register_forward_hook(self._hook).remove)

    def _hook(self, module: nn.Module, args: Any, output: Any) -> None:
        with modes_off():
            for tensor in tensors_in(output):
                names = dimensions_of_module(module, tensor)
                if names is not None:
                    self._events.append((tensor.shape, names))
                return

    def start(self) -> None:
        """Begin a forward pass."""
        self._events, self._asked = [], {}

    def asked(self, name: str, module: nn.Module, tensor: Tensor) -> None:
        """Note that a layer of this name was met."""
        self._asked[name] = self.met(module, tensor)

    def met(self, module: nn.Module, tensor: Tensor) -> Met:
        """Return a record of the output or input of a module at this moment, for :meth:`of`."""
        return len(self._events), tensor.shape, dimensions_of_module(module, tensor)

    def found(self) -> dict[str, Dims]:
        """Return the dimensions of all layers that were met."""
        return {name: self.of(asked) for name, asked in self._asked.items()}

    def of(self, met: Met) -> Dims:
        """Return the dimensions of a tensor, by what ran before it and, once it has, after it."""
        at, shape, own = met
        before, after = reversed(self._events[:at]), self._events[at:]
        told = [own] if own is not None else []
        told += [names for size, names in (*before, *after) if size == shape]
        if not told and len(shape) > 2:
            return completed([None] * len(shape))
        names = _merged(told[:1], len(shape)) if told else [None] * len(shape)
        if len(shape) == 2:
            return completed([names[0], names[1] or "feature"])
        return completed(_merged([tuple(names), *self._leading(shape)], len(shape)))

    def _leading(self, shape: torch.Size) -> Iterable[Names]:
        """Yield the names of leading dimensions by inputs of the same leading sizes (but for the batch)."""
        for sizes, dims in self._inputs.values():
            front = zip(sizes[:-1], shape[:-1], dims[:-1], strict=False)
            if len(sizes) == len(shape) and all(a == b or dim == BATCH for a, b, dim in front):
                yield (*dims[:-1], None)


def _merged(told: Iterable[Names], count: int) -> list[str | None]:
    """Return for each dimension the first name that is known."""
    merged: list[str | None] = [None] * count
    for names in told:
        merged = [name or other if other not in merged else name for name, other in zip(merged, names, strict=True)]
    return merged
