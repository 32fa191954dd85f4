"""Meters: hooks on autograd nodes that read the relevance that arrives there, and that is sent on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autograd.functions import RelevanceFunction
from ..autograd.nodes import function_of_node
from .edge import Edge, Reader, Slots
from .journal import Journal
from .operation import Operation


def _unrecorded(hook: Callable[..., None]) -> Callable[..., None]:
    """Switch grad off where create_graph=True has left it on; a check costs less than switching each time."""

    @wraps(hook)
    def quiet(*args: Any) -> None:
        if not torch.is_grad_enabled():
            return hook(*args)
        with torch.no_grad():
            return hook(*args)

    return quiet


class View(NamedTuple):
    """The position of a view in its base: sizes, strides and offset, and the strides of the base."""

    size: Sequence[int]
    stride: Sequence[int]
    offset: int
    whole: Sequence[int]

    def of(self, slot: Tensor) -> Tensor:
        """Return the part of the base's slot that belongs to the view; the slot may have other strides."""
        if slot.stride() != tuple(self.whole):
            slot = slot.new_empty_strided(slot.shape, self.whole).copy_(slot)
        return slot.as_strided(self.size, self.stride, slot.storage_offset() + self.offset)


class Whole(NamedTuple):
    """The base of a view that an operation put out: after a change in place, autograd leads past the view."""

    edge: Edge
    """The edge of the view."""
    sinks: list[tuple[int, Reader]]
    view: View


def view_of(z: Tensor) -> View | None:
    """Return the position of a view in its base; None if a tensor is no view."""
    whole = z._base
    if whole is None:
        return None
    return View(z.size(), z.stride(), int(z.storage_offset() - whole.storage_offset()), whole.stride())


def inside(view: View | None, read: Reader) -> Reader:
    """Return a function that takes the slot of a view from that of its base."""
    return read if view is None else lambda slot: read(view.of(slot))


@dataclass(slots=True, eq=False)
class Meter:
    """The hook after one node: reads the relevance that arrives at the node's tensors, and that it sends on."""

    journal: Journal
    operation: Operation
    """The operation that the node belongs to."""
    borders: list[tuple[int, Edge]] = field(default_factory=list)
    """The edges of the node that lead to a known tensor, by index."""
    past_views: list[tuple[int, Whole]] = field(default_factory=list)
    """The edges that lead to the base of a known view: relevance sent there arrives past the view."""
    ways: list[int] = field(default_factory=list)
    """The edges that lead to any node."""
    outputs: list[tuple[int, Edge, list[tuple[int, Reader]]]] = field(default_factory=list)
    """The tensors of the node, with the accounts of what is absorbed there, and how each is read."""

    def hang(self, node: Any) -> None:
        """Register this as a hook of the node."""
        function = function_of_node(node)
        if function is None or issubclass(function, RelevanceFunction):
            node.register_hook(self)
        else:  # the node may write over its slot, so the slot is read before it runs
            node.register_prehook(self.before)
            node.register_hook(self.after)

    def __call__(self, sent: Slots, arrived: Slots) -> None:
        """Note that the node has run."""
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
        for place, whole in self.past_views:
            if sent[place] is not None:
                slot = whole.view.of(sent[place])  # type: ignore[arg-type]
                self.journal.post(whole.edge.read(slot), self.operation.sent, *whole.edge.flow)
                for account, reader in whole.sinks:
                    self.journal.post(reader(slot), account)
        for place in self.ways:
            self.operation.silent += sent[place] is None
