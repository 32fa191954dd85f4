"""A call that autograd records, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..autograd.marks import MARK, SIGNAL, History, history_of
from .call_stack import Frame
from .chain_step import Step
from .forms import Form
from .histories import after
from .operations import check_unseen
from .policy import FunctionInfo
from .session import Session
from .strangers import is_stranger


@dataclass(eq=False, slots=True)
class Recorded:
    """A call that autograd records, and what is known of it.

    Attributes:
        info: what is known of its function.
        frame: the module that calls it.
        args: its arguments.
        kwargs: its keyword arguments.
        carriers: the carriers among them.
        form: the form of the call, if it has one.
        given: what was known of the carriers as gates before it ran.
        known: the same, with what the rule makes of it.
        step: what it does to a function of one tensor, if it is a step of one.
    """

    info: FunctionInfo
    frame: Frame
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    carriers: list[Tensor]
    form: Form | None
    given: list[History]
    known: list[History]
    step: Step | None = None

    def history(self, is_learned: Callable[[Tensor], bool]) -> History:
        """Return what is known of the output as a gate."""
        history = after(self.info, self.args, self.kwargs, self.carriers, self.known, is_learned, self.form)
        return history if self.step is None else self.step.history(history, len(self.carriers))


def known_of(carriers: list[Tensor], frame: Frame, session: Session) -> list[History] | None:
    """Return what is known of each carrier as a gate; count operations that made it unseen as uncovered.

    It is None if one of them is to be a constant.
    """
    known: list[History] = []
    for x in carriers:
        source: Any = x.grad_fn
        history = None if source is None else source.metadata.get(MARK)
        if history is None:
            if is_stranger(session, x, frame):
                return None
            check_unseen(session, x, frame)
            history = SIGNAL if source is None else history_of(x)
        known.append(history)
    return known
