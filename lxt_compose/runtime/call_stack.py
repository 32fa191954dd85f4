"""The modules that are running in each thread, innermost last."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..rules import Call, Rule
from .observer import Seen
from .unseen import Unseen

if TYPE_CHECKING:
    from .activation_modules import Unit
    from .module_hooks import Site


_MODULE_CALL = nn.Module._call_impl.__code__


def module_call() -> FrameType | None:
    """Python's frame of the innermost module call: it is on the stack for exactly as long as the module runs."""
    python = sys._getframe(1)
    while python is not None and python.f_code is not _MODULE_CALL:
        python = python.f_back  # type: ignore[assignment]
    return python


@dataclass(slots=True)
class Frame:
    """One module that is running in this thread."""

    site: Site
    path: str
    python: FrameType | None
    """See :func:`module_call`."""
    checkpoint: Any = None
    """The activation checkpoint that it is recorded by, if there is one."""
    inside: str | None = None
    """The outermost bound module that this one runs inside of (or is): its rule is for all that is in it."""
    scope: Rule | None = None
    """That module's rule, if it acts on the operations inside (Norm, SoftmaxTaylor, Gamma, ...)."""
    keys_inside: bool = False
    """Whether `scope` is there by default, so that the user's keys for functions go before it."""
    call: Call | None = None
    seen: Seen | None = None
    """What an observer saw begin, if there is one and the module is taken as one unit."""
    gaps: int = 0
    """How many gaps there were when it began (see :class:`Unseen`)."""
    owner: bool = False
    """Whether this frame brought the function mode in, and takes it out again."""
    alone: bool = False
    """Whether the module was called on its own, not by the model and not by a recomputation."""
    in_force: bool = False
    """Whether the module is bound and its own rule acts."""
    served: bool = False
    """Whether an operation that `scope` serves has run."""
    others: bool = False
    """Whether more than that one has run, moving things about aside."""
    whole: Call | None = None
    """The module as one operation, for a rule that takes it so if it is made of others."""
    unit: Unit | None = None
    """What is known of the module so far, if it may turn out to be one elementwise function."""

    @property
    def shadowed_by(self) -> str | None:
        """The bound module whose rule takes it as one unit, so that nothing inside is touched."""
        return self.inside if self.scope is None else None

    def is_running(self) -> bool:
        """Whether the module's call is still on the stack of this thread."""
        python: FrameType | None = sys._getframe(1)
        while python is not None and python is not self.python:
            python = python.f_back
        return python is self.python


class Running(threading.local):
    """Per thread: the modules that are running, innermost last, and what was met since the outermost began."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.ended: int | None = None
        """The number of the node that came next when the last outermost module had ended (see `unseen.py`)."""
        self.seen: Seen | None = None
        """The operation that an observer watches now."""
        self.start()

    def innermost(self) -> Frame | None:
        """The innermost module that is running; those that an interrupt ended, past all hooks, are dropped."""
        while self.frames and not self.frames[-1].is_running():
            self.frames.pop()
        return self.frames[-1] if self.frames else None

    def start(self) -> None:
        """Forget what was met; called when an outermost module begins."""
        self.carriers_met = False
        self.recorded = torch.is_grad_enabled()
        self.first_layer_met = False
        self.stopped = False
        self.root_inputs: list[Tensor] = []
        self.unseen = Unseen()
