"""Activation checkpoints of functions: what is recomputed during backward runs again in the module it ran in.

A checkpointed *module* brings the rules in by itself when it is recomputed. A checkpointed function does not: a block
that checkpoints its own forward, say, whose residual additions would be recomputed without any rule. So when something
runs in a checkpoint that began in the code of a module, the function that will be recomputed is exchanged, in that one
checkpoint, for one that enters the module again first. Neither the model nor torch is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import CheckpointFunction

from ..autograd.saved_values import checkpoint_hook
from .call_stack import Frame

if TYPE_CHECKING:
    from .module_hooks import Site


_REENTRANT = CheckpointFunction.forward.__code__


class Again:
    """The function of a checkpoint, in the module that it was first run in."""

    def __init__(self, function: Callable[..., Any], frame: Frame) -> None:
        self.function = function
        self.site: Site = frame.site
        self.inside, self.scope = frame.inside, frame.scope

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it with the rules in force, if the registration is still there."""
        registration = self.site.registration
        if not registration.active:
            return self.function(*args, **kwargs)
        frame = Frame(self.site, self.site.names[0], sys._getframe(), checkpoint_hook(), owner=True)
        frame.inside, frame.scope = self.inside, self.scope
        frames = registration.running.frames
        frames.append(frame)
        try:
            registration.begin(args, kwargs)
            frame.gaps = registration.running.unseen.begin()
            return self.function(*args, **kwargs)
        finally:
            del frames[frames.index(frame) :]
            registration.end()


def rejoin(frame: Frame) -> bool:
    """See to it that the checkpoint in which the code of a running module is now will be recomputed in that module.

    Returns:
        Whether there is none, or it will be. What cannot be reached is for the caller to report.
    """
    hook = checkpoint_hook()
    if hook not in (None, frame.checkpoint):
        return _exchange(_holder(hook), "recompute_fn", frame)
    python = _reentrant(frame)
    return python is None or _exchange(python.f_locals.get("ctx"), "run_function", frame)


def in_custom_function() -> bool:
    """Whether this is in the forward of an autograd function, whose steps are not recorded but have a backward.

    So is what a reentrant checkpoint runs.
    """
    python: FrameType | None = sys._getframe(1)
    while python is not None:
        first = python.f_code.co_varnames[:1] if python.f_code.co_argcount else ()
        if first and isinstance(python.f_locals.get(first[0]), FunctionCtx):
            return True
        python = python.f_back
    return False


def _reentrant(frame: Frame) -> FrameType | None:
    """The call of a reentrant checkpoint in which the code of this module is, if it is in one."""
    python: FrameType | None = sys._getframe(1)
    while python is not None and python is not frame.python:
        if python.f_code is _REENTRANT:
            return python
        python = python.f_back
    return None


def _holder(hook: Any) -> Any:
    """What a non-reentrant checkpoint keeps its function in; its hooks for saved tensors refer to it."""
    cells = (cell.cell_contents for cell in getattr(hook, "__closure__", None) or ())
    return next((each for each in (hook, *cells) if hasattr(each, "recompute_fn")), None)


def _exchange(holder: Any, name: str, frame: Frame) -> bool:
    function = getattr(holder, name, None)
    if function is None:
        return False
    if not isinstance(function, Again):
        setattr(holder, name, Again(function, frame))
    return True
