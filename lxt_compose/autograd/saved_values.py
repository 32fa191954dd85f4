"""What a backward pass needs, saved such that an in-place operation later in the forward pass does not spoil it.

Rules save the values of inputs and outputs. PyTorch's own operations often do not (a convolution with constant
weights needs no output), so a model may go on to change such a tensor in place: ``relu_(conv(x))``. Copying
all that is saved would be safe and slow. Instead :func:`save` notes who saved which storage, and :func:`rescue`,
called just before an in-place operation, has exactly those who saved *that* storage take a copy.
"""

import inspect
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

_ROOM = 4096


class _Notes(threading.local):
    """Per thread: for each storage, the autograd nodes that saved a tensor of it, and at which place."""

    def __init__(self) -> None:
        self.savers: dict[int, list[tuple[weakref.ref[Any], int]]] = {}
        self.new, self.room = 0, _ROOM


_notes = _Notes()


def prune() -> None:
    """Drop the notes on nodes that are gone: a note does not keep its node alive."""
    for memory, savers in list(_notes.savers.items()):
        alive = [(node, place) for node, place in savers if node() is not None]
        if alive:
            _notes.savers[memory] = alive
        else:
            del _notes.savers[memory]
    _notes.new, _notes.room = 0, max(_ROOM, sum(map(len, _notes.savers.values())))


def _note(tensor: Tensor, saver: Any, place: int) -> None:
    """Note who saved this memory. Outside of registrations nobody else prunes, so do it now and then."""
    _notes.savers.setdefault(storage_of(tensor), []).append((saver, place))
    _notes.new += 1
    if _notes.new > _notes.room:
        prune()


_innermost_hooks: Callable[[bool], Any] | None = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
"""What packs and unpacks saved tensors now; older versions of torch do not tell."""
_CHECKPOINT = inspect.unwrap(torch.utils.checkpoint.checkpoint).__code__


def checkpoint_hook() -> Any:
    """What identifies the innermost non-reentrant activation checkpoint that records now; None outside of any."""
    if _innermost_hooks is None:
        return _checkpoint_on_the_stack()
    hooks = _innermost_hooks(True)
    recording = hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"
    return hooks[0] if recording else None


def _checkpoint_on_the_stack() -> Any:
    """The same, found in the calls that are under way: what a checkpoint keeps its function in."""
    python: FrameType | None = sys._getframe(1)
    while python is not None:
        if python.f_code is _CHECKPOINT and (recording := python.f_locals.get("gen")) is not None:
            return recording.gi_frame and recording.gi_frame.f_locals.get("new_frame")
        if python.f_code.co_name == "unpack_hook" and python.f_globals is torch.utils.checkpoint.__dict__:
            return python  # it is recomputed
        python = python.f_back
    return None


def storage_of(tensor: Tensor) -> int:
    """An identity of the memory behind a tensor; views of one another have the same."""
    if tensor.layout is not torch.strided:  # a sparse tensor has no such memory, and no views
        return id(tensor)
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # it stands for many tensors inside of vmap; nobody saves it
        return id(tensor)


def save(ctx: Any, *tensors: Tensor) -> None:
    """``ctx.save_for_backward(*tensors)``, for tensors that may be changed in place afterwards."""
    if _innermost_hooks is None or _innermost_hooks(True) is not None:
        # Somebody packs what is saved (or may): activation checkpointing, or offloading. What they packed cannot be
        # exchanged later, and a recomputed block changes its tensors in place anew: so copy now.
        tensors = tuple(tensor.detach().clone() for tensor in tensors)
    else:
        node = weakref.ref(ctx)
        for place, tensor in enumerate(tensors):
            _note(tensor, node, place)
    ctx.save_for_backward(*tensors)


class Kept:
    """The value that a tensor has now, whatever is done to it in place afterwards; made by :func:`keep`."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Tensor) -> None:
        self.value = value

    @property
    def _raw_saved_tensors(self) -> tuple["Kept"]:
        return (self,)

    def register_hooks(self, pack: Callable[[Tensor], Tensor], _: Callable[[Tensor], Tensor]) -> None:
        """Take the copy that :func:`rescue` asks for."""
        self.value = pack(self.value)


def keep(tensor: Tensor) -> Kept:
    """Keep a value beside the autograd graph: a copy is taken only if the tensor is about to be changed in place."""
    kept = Kept(tensor.detach())
    _note(tensor, weakref.ref(kept), 0)
    return kept


def rescue(tensor: Tensor) -> None:
    """Have all who saved (a view of) this tensor keep a copy, since it is about to be changed in place."""
    for node, place in _notes.savers.pop(storage_of(tensor), ()):
        ctx = node()
        if ctx is None:
            continue
        try:
            saved = ctx._raw_saved_tensors[place]
        except RuntimeError:
            continue  # its backward has run already and freed what it had saved
        saved.register_hooks(torch.clone, lambda kept: kept)
