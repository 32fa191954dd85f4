"""Edges of the autograd graph, at which the relevance of a tensor is read off the slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from ..autograd.saved_values import Kept, keep
from .journal import Flow, Row
from .layouts import Layout
from .rows import row_of

Slots = Sequence[Tensor | None]
Reader = Callable[[Tensor], Row]
"""From the slot of an output to an amount of its relevance."""


@dataclass(slots=True, eq=False)
class Edge:
    """A tensor between two operations, whose relevance is read off its slot; it lives as long as the graph."""

    value: Kept | None
    """Its value, in the gradient formulation, where R = value * slot."""
    layout: Layout | None
    flow: Flow
    samples: int
    last: tuple[Any, int, Row] | None = None
    """The slot that was read last, its version, and its row."""

    def keep(self, z: Tensor) -> Kept:
        """Return the tensor's value."""
        return self.value or keep(z)

    def read(self, slot: Tensor) -> Row:
        """Return the relevance in a slot. A single consumer sends the very tensor that arrives, which is read once."""
        if self.last is not None and self.last[0]() is slot and self.last[1] == slot._version:
            return self.last[2]
        row = self._row(slot)
        self.last = None if slot.is_inference() else (ref(slot), slot._version, row)
        return row

    def _row(self, slot: Tensor) -> Row:
        """Return the row of a slot; a slot of 0 has no relevance, also at masked scores of -inf."""
        if self.value is None:
            return row_of(_real(slot), self.layout, self.samples)
        slot, value = _alike(slot, self.value.value)
        if slot.device.type != "cpu":  # looking for NaN would wait for the device
            return row_of(torch.where(slot == 0, 0, slot * value), self.layout, self.samples)
        row = row_of(slot * value, self.layout, self.samples)
        return row_of(torch.where(slot == 0, 0, slot * value), self.layout, self.samples) if isnan(sum(row)) else row


def _real(relevance: Tensor) -> Tensor:
    """Return complex numbers as pairs: they hold one relevance for their real and one for their imaginary part."""
    return torch.view_as_real(relevance).sum(-1) if relevance.is_complex() else relevance


def _alike(slot: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as real numbers, in float32 at least."""
    if slot.is_complex() or value.is_complex():
        slot, value = (torch.view_as_real(t if t.is_complex() else t.to(torch.complex128)) for t in (slot, value))
        return slot, value
    short = slot.dtype in (torch.float16, torch.bfloat16)
    return (slot.float(), value.float()) if short else (slot, value)
