"""Saving values for the backward pass such that later in-place operations do not spoil them.

Rules save the values of inputs and outputs. PyTorch's own operations often do not (a convolution with constant weights
needs no output), so a model may go on to change such a tensor in place: ``relu_(conv(x))``. Copying all that is saved
would be safe and slow. Instead :func:`save` notes which nodes saved which storage, and :func:`rescue`, called just
before an in-place operation, has those nodes that saved *that* storage take a copy.
"""

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..torch_internals import exchange_saved, packs_saved_tensors, storage_of

_ROOM = 4096


class _Notes:
    """For each storage, the autograd nodes that saved a tensor of it, and at which place."""

    def __init__(self) -> None:
        self._savers: dict[int, list[tuple[weakref.ref[Any], int]]] = {}
        self._new: list[tuple[int, weakref.ref[Any], int]] = []
        """What was noted last, and is yet to be sorted by storage: most is never asked for."""
        self._added, self._room = 0, _ROOM

    def __iter__(self) -> Iterator[weakref.ref[Any]]:
        self._sort()
        return iter([node for savers in self._savers.values() for node, _ in savers])

    def prune(self) -> None:
        """Drop the notes on nodes that are gone."""
        self._new = [note for note in self._new if note[1]() is not None]
        for memory, savers in list(self._savers.items()):
            alive = [(node, place) for node, place in savers if node() is not None]
            if alive:
                self._savers[memory] = alive
            else:
                del self._savers[memory]
        self._added, self._room = 0, max(_ROOM, len(self._new) + sum(map(len, self._savers.values())))

    def add(self, tensor: Tensor, saver: weakref.ref[Any], place: int) -> None:
        """Note which node saved this memory; now and then, drop notes on nodes that are gone."""
        self._new.append((storage_of(tensor), saver, place))
        self._added += 1
        if self._added > self._room:
            self.prune()

    def pop(self, memory: int) -> list[tuple[weakref.ref[Any], int]]:
        """Return the nodes that saved this memory, and forget them."""
        self._sort()
        return self._savers.pop(memory, [])

    def _sort(self) -> None:
        for memory, saver, place in self._new:
            self._savers.setdefault(memory, []).append((saver, place))
        self._new = []


class _PerThread(threading.local):
    """The notes of each thread."""

    def __init__(self) -> None:
        self.notes = _Notes()


_threads = _PerThread()


def prune() -> None:
    """Drop the notes on nodes that are gone: notes hold nodes weakly."""
    _threads.notes.prune()


def save(ctx: Any, *tensors: Tensor) -> None:
    """Call ``ctx.save_for_backward(*tensors)`` for tensors that may be changed in place afterwards."""
    if packs_saved_tensors():
        # Saved-tensor hooks (activation checkpointing, offloading) pack what is saved. That cannot be exchanged later,
        # and a recomputed block changes its tensors in place again: so copy now.
        tensors = tuple(tensor.detach().clone() for tensor in tensors)
    else:
        node, notes = weakref.ref(ctx), _threads.notes
        for place, tensor in enumerate(tensors):
            notes.add(tensor, node, place)
    ctx.save_for_backward(*tensors)


class Kept:
    """The value that a tensor has now, whatever in-place operations do to it afterwards; made by :func:`keep`."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Tensor) -> None:
        self.value = value


def keep(tensor: Tensor) -> Kept:
    """Keep a value beside the autograd graph: a copy is taken only if the tensor is about to be changed in place."""
    kept = Kept(tensor.detach())
    _threads.notes.add(tensor, weakref.ref(kept), 0)
    return kept


def rescue(tensor: Tensor) -> None:
    """Have all nodes that saved (a view of) this tensor keep a copy, since it is about to be changed in place."""
    for node, place in _threads.notes.pop(storage_of(tensor)):
        saver = node()
        if isinstance(saver, Kept):
            saver.value = saver.value.clone()
        elif saver is not None:
            exchange_saved(saver, place, torch.clone)
