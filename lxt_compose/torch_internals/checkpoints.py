"""Activation checkpoints: whether one records now, and where torch keeps the function that it will recompute.

That function is exchanged for one that enters the module again before it recomputes. Unnecessary once one can tell
checkpoints from outside which contexts to recompute in.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch.utils.checkpoint import CheckpointFunction

_CHECKPOINT = inspect.unwrap(torch.utils.checkpoint.checkpoint).__code__
_REENTRANT = CheckpointFunction.forward.__code__
_innermost_hooks: Callable[[bool], Any] | None = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def packs_saved_tensors() -> bool:
    """Return whether hooks pack what is saved for backward; in older versions of torch, whether they may."""
    return _innermost_hooks is None or _innermost_hooks(True) is not None


def checkpoint_hook() -> Any:
    """Return an object that identifies the innermost non-reentrant checkpoint that records now; None outside of any."""
    if _innermost_hooks is None:
        return _checkpoint_on_stack()
    hooks = _innermost_hooks(True)
    if hooks is None:
        return None
    return hooks[0] if getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint" else None


def _checkpoint_on_stack() -> Any:
    """Return the same from the running Python frames, for versions of torch without a function for it."""
    python: FrameType | None = sys._getframe(1)
    while python is not None:
        if python.f_code is _CHECKPOINT and (recording := python.f_locals.get("gen")) is not None:
            return recording.gi_frame and recording.gi_frame.f_locals.get("new_frame")
        if python.f_code.co_name == "unpack_hook" and python.f_globals is torch.utils.checkpoint.__dict__:
            return python  # a recomputation
        python = python.f_back
    return None


def checkpoint_function_holder(hook: Any) -> tuple[Any, str]:
    """Return the object in which a non-reentrant checkpoint keeps its function, and the name of the attribute."""
    cells = (cell.cell_contents for cell in getattr(hook, "__closure__", None) or ())
    return next((each for each in (hook, *cells) if hasattr(each, "recompute_fn")), None), "recompute_fn"


def reentrant_function_holder(stop: FrameType | None) -> tuple[Any, str] | None:
    """Return the same for a reentrant checkpoint that runs within the module call `stop`; None if there is none."""
    python: FrameType | None = sys._getframe(1)
    while python is not None and python is not stop:
        if python.f_code is _REENTRANT:
            return python.f_locals.get("ctx"), "run_function"
        python = python.f_back
    return None
