"""Meters: hooks on the nodes of the autograd graph that read the relevance which arrives there and which is sent on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from math import isnan
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor

from ..autograd.functions import RelevanceFunction
from ..autograd.nodes import function_of_node
from ..autograd.saved_values import Kept, keep
from .journal import Flow, Journal, Row
from .rows import row_of
from .samples import Layout

if TYPE_CHECKING:
    from .accounts import Operation


Slots = Sequence[Tensor | None]
Reader = Callable[[Tensor], Row]
"""From the slot of an output to an amount of its relevance."""


@dataclass(slots=True, eq=False)
class Edge:
    """A tensor on the way: how its relevance is read off its slot. It lives as long as the autograd graph does."""

    value: Kept | None
    """Its value, in the gradient formulation, where R = value * slot."""
    layout: Layout | None
    flow: Flow
    samples: int
    last: tuple[Any, int, Row] | None = None
    """The slot that was read last, its version, and its row."""

    def keep(self, z: Tensor) -> Kept:
        """The tensor's value."""
        return self.value or keep(z)

    def read(self, slot: Tensor) -> Row:
        """The relevance in a slot; where there is one consumer, what arrives is the very tensor that it sent."""
        if self.last is not None and self.last[0]() is slot and self.last[1] == slot._version:
            return self.last[2]
        row = self._row(slot)
        self.last = None if slot.is_inference() else (ref(slot), slot._version, row)
        return row

    def _row(self, slot: Tensor) -> Row:
        """A slot of 0 has no relevance, also at masked scores of -inf."""
        if self.value is None:
            return row_of(_real(slot), self.layout, self.samples)
        slot, value = _alike(slot, self.value.value)
        if slot.device.type != "cpu":  # to look for NaN would be to wait for the device
            return row_of(torch.where(slot == 0, 0, slot * value), self.layout, self.samples)
        row = row_of(slot * value, self.layout, self.samples)
        return row_of(torch.where(slot == 0, 0, slot * value), self.layout, self.samples) if isnan(sum(row)) else row


def _real(relevance: Tensor) -> Tensor:
    """Complex numbers hold one relevance for their real and one for their imaginary part."""
    return torch.view_as_real(relevance).sum(-1) if relevance.is_complex() else relevance


def _alike(slot: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Both as real numbers, and not in half precision."""
    if slot.is_complex() or value.is_complex():
        slot, value = (torch.view_as_real(t if t.is_complex() else t.to(torch.complex128)) for t in (slot, value))
        return slot, value
    short = slot.dtype in (torch.float16, torch.bfloat16)
    return (slot.float(), value.float()) if short else (slot, value)


def _unrecorded(hook: Callable[..., None]) -> Callable[..., None]:
    """With grad off, as it is in a backward pass but for create_graph=True; asking costs less than to switch it."""

    @wraps(hook)
    def quiet(*args: Any) -> None:
        if not torch.is_grad_enabled():
            return hook(*args)
        with torch.no_grad():
            return hook(*args)

    return quiet


@dataclass(slots=True, eq=False)
class Meter:
    """The hook after one node: reads what arrives at the tensors that the node made, and what it sends on."""

    journal: Journal
    operation: Operation
    """What the node belongs to."""
    borders: list[tuple[int, Edge]] = field(default_factory=list)
    """Which of its ways lead to a tensor that is known."""
    ways: list[int] = field(default_factory=list)
    """Which of its ways lead anywhere."""
    outputs: list[tuple[int, Edge, list[tuple[int, Reader]]]] = field(default_factory=list)
    """The tensors that it made, with what is absorbed there: the account, and how it is read."""

    def hang(self, node: Any) -> None:
        """Become a hook of the node."""
        function = function_of_node(node)
        if function is None or issubclass(function, RelevanceFunction):
            node.register_hook(self)
        else:  # it may write over the slot that it is given, so that is read before
            node.register_prehook(self.before)
            node.register_hook(self.after)

    def __call__(self, sent: Slots, arrived: Slots) -> None:
        """The node has run."""
        self.before(arrived)
        self.after(sent, arrived)

    @_unrecorded
    def before(self, arrived: Slots) -> None:
        """Read what arrives."""
        for number, edge, sinks in self.outputs:
            slot = arrived[number]
            if slot is not None:
                self.journal.post(edge.read(slot), edge.flow.arrived)
                for account, reader in sinks:
                    self.journal.post(reader(slot), account)

    @_unrecorded
    def after(self, sent: Slots, _: Slots) -> None:
        """Read what is sent on."""
        for place, edge in self.borders:
            slot = sent[place]
            if slot is not None:
                self.journal.post(edge.read(slot), self.operation.sent, edge.flow.sent)
        for place in self.ways:
            self.operation.silent += sent[place] is None
