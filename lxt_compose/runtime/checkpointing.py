"""Activation checkpoints of functions: what is recomputed during backward runs again in the module it ran in.

A checkpointed *module* runs its hooks again when it is recomputed, and so its rules. A checkpointed function does not:
a block that checkpoints its own forward, say, whose residual additions would be recomputed without any rule. So when
something runs in a checkpoint that began in the code of a module, the function that will be recomputed is exchanged, in
that one checkpoint, for one that enters the module again first. Neither the model nor torch is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..torch_internals import checkpoint_function_holder, checkpoint_hook, reentrant_function_holder, this_call
from .call_stack import CallStack, Context, Frame


class Reentered(Protocol):
    """The session of a registration, as far as a recomputation needs it."""

    active: bool

    @property
    def stack(self) -> CallStack:
        """What runs in this thread."""

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that an outermost module begins in this thread."""

    def end(self) -> None:
        """Note that the outermost module has ended in this thread."""


class Recomputed:
    """The function of a checkpoint, run in the module that it was first run in."""

    def __init__(self, session: Reentered, function: Callable[..., Any], context: Context) -> None:
        self.session, self.function, self.context = session, function, context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it with the rules in force, if the registration is still active."""
        if not self.session.active:
            return self.function(*args, **kwargs)
        frame = Frame(self.context, this_call(), checkpoint_hook(), owner=True)
        frames = self.session.stack.frames
        frames.append(frame)
        try:
            self.session.begin(args, kwargs)
            return self.function(*args, **kwargs)
        finally:
            del frames[frames.index(frame) :]
            self.session.end()


def rejoin(session: Reentered, frame: Frame) -> bool:
    """Have the checkpoint around the code of a running module recompute in that module.

    Returns:
        Whether there is none, or it will. The caller reports a checkpoint that cannot be reached.
    """
    hook = checkpoint_hook()
    if hook not in (None, frame.checkpoint):
        return _exchange(session, *checkpoint_function_holder(hook), frame)
    found = reentrant_function_holder(frame.python)
    return found is None or _exchange(session, *found, frame)


def _exchange(session: Reentered, holder: Any, name: str, frame: Frame) -> bool:
    function = getattr(holder, name, None)
    if function is None:
        return False
    if not isinstance(function, Recomputed):
        setattr(holder, name, Recomputed(session, function, frame.context))
    return True
