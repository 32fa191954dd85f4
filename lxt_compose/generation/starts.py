"""Where backward passes of many rows begin: as deep in a model as what lies above treats each place by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.latent import blocks
from ..autograd.trees import tensors_in


@dataclass(frozen=True)
class Start:
    """Tensors that a backward pass begins at, and what with: for some of the rows, [rows, ...] each."""

    tensors: tuple[Tensor, ...]
    seeds: Callable[[slice], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Numbers:
    """What is explained: ``values`` [K], and ``ones`` [K], what a pass for all of them begins with.

    ``weights`` [rows, K] say how much of each number is in a row.
    """

    values: Tensor
    ones: Tensor
    weights: Tensor

    def at(self, places: Tensor, slot: Tensor) -> Callable[[slice], Tensor]:
        """Return what gives the share of some rows in a slot [1, places, ...] that all of them have together."""
        shares = self.weights.new_zeros(len(self.weights), slot.shape[1])
        shares[:, places] = self.weights
        shares = shares.to(slot)
        return lambda part: shares[part].reshape(-1, 1, slot.shape[1], *[1] * (slot.dim() - 2)) * slot


class Watch:
    """Keeps hold of tensors near the output in the next forward pass; a context manager.

    These are what goes into the layer that makes logits, and, of the last block, its own input and those of the
    modules in it.
    """

    def __init__(self, model: nn.Module) -> None:
        head = getattr(model, "get_output_embeddings", lambda: None)()
        self._head = head if isinstance(head, nn.Module) else None
        modules = dict(model.named_modules())
        self._block = next((modules[name] for name in reversed(blocks(model))), None)
        self.states: Tensor | None = None
        self._read: Tensor | None = None
        self._inside: dict[int, Tensor] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Watch:
        if self._head is not None:
            self._stack.callback(self._head.register_forward_pre_hook(self._at_head).remove)
        if self._block is not None:
            for module in self._block.modules():
                look = self._at_block if module is self._block else self._within
                self._stack.callback(module.register_forward_pre_hook(look, with_kwargs=True).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _at_head(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and args[0].dim() == 3:
            self.states = args[0]

    def _at_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._read, self._inside = _first(args, kwargs), {}

    def _within(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = _first(args, kwargs)
        if x is not None and self._read is not None:
            self._inside.setdefault(id(x), x)

    # ---- where to begin ----------------------------------------------------------------------------------------------

    def at_head(self, numbers: Numbers, places: Tensor, length: int) -> Iterator[Start]:
        """Yield the start before the layer that makes logits, if it was reached: slots there have the size of features.

        Args:
            numbers: what is explained.
            places: where each number is in the logits.
            length: how many places the logits have.
        """
        states = self.states
        if states is None or not states.requires_grad or states.shape[:2] != (1, length):
            return
        (slot,) = _grad(numbers.values, (states,), numbers.ones)
        if slot is not None:
            seeds = numbers.at(places, slot)
            yield Start((states,), lambda part: (seeds(part),))

    def in_last_block(self, numbers: Numbers, places: Tensor) -> Iterator[Start]:
        r"""Yield the start below which tokens are mixed for the last time, if there is one.

        With x what the last block reads and y what comes out of its attention, numbers are f(x, y), and what f does at
        a place depends on x and y at that place alone. So one pass for all numbers gives the slots of each,
        :math:`\partial_x f = \nabla_x - (\partial y / \partial x)^T \nabla_y` and :math:`\nabla_y`, at its own place.
        Whether it is so is seen from the slots of the last number alone.

        Args:
            numbers: what is explained.
            places: where each number is among the tokens.
        """
        x, alone = self._read, torch.zeros_like(numbers.ones)
        last = int(places.argmax())
        alone[last] = numbers.ones[last]
        if x is None or x.shape[1] <= int(places[last]):
            return
        inside = [y for y in self._inside.values() if y is not x and y.shape[:2] == x.shape[:2]]
        whole, *slots = _grad(numbers.values, (x, *inside), alone)
        for y, slot in zip(inside, slots, strict=True):
            if whole is None or slot is None or _elsewhere(slot, places[last]).any():
                continue
            direct = _without(whole, y, x, slot)
            if _elsewhere(direct, places[last]).max() > torch.finfo(x.dtype).eps ** 0.75 * whole.abs().max():
                continue
            at_x, at_y = _grad(numbers.values, (x, y), numbers.ones)
            assert at_x is not None
            assert at_y is not None
            seeds = [numbers.at(places, _without(at_x, y, x, at_y)), numbers.at(places, at_y)]
            yield Start((x, y), lambda part, each=tuple(seeds): tuple(seed(part) for seed in each))  # type: ignore[misc]
            return


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first tensor that a module is given, if it is a carrier with one vector for each token."""
    x = next(iter(tensors_in((args, kwargs))), None)
    return x if x is not None and x.requires_grad and x.dim() == 3 and len(x) == 1 else None


def _grad(outputs: Tensor, inputs: Sequence[Tensor], seeds: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, allow_unused=True)


def _without(whole: Tensor, y: Tensor, x: Tensor, slot: Tensor) -> Tensor:
    """Return what of a slot at x does not come by way of y."""
    (through,) = _grad(y, (x,), slot)
    return whole if through is None else whole - through


def _elsewhere(slot: Tensor, place: Tensor) -> Tensor:
    """Return how large a slot [1, places, features] is at all places but one."""
    size = slot.detach()[0].abs().amax(-1)
    size[place] = 0
    return size
