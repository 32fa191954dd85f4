"""What ran during forward passes, counted as it happens: the raw material of the coverage report."""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .coverage_rows import Status
from .errors import RegistrationError, UncoveredError, place
from .folding import fold_names
from .matching import Assignment
from .observing import Seen
from .rules import Call, Epsilon, Rule
from .unseen import Unseen, made_since

if TYPE_CHECKING:
    from .hooks import Site
    from .units import Unit


_MODULE_CALL = nn.Module._call_impl.__code__


def _exchange_for_callback() -> Any:
    """What older versions of torch hand out only in exchange for another one."""
    callback = torch._C._dynamo.eval_frame.set_eval_frame(None)
    torch._C._dynamo.eval_frame.set_eval_frame(callback)
    return callback


_compiler: Callable[[], Any] = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", _exchange_for_callback)


def refuse_compiled(what: str) -> None:
    """Raise if this is called from code that torch.compile runs, where neither hooks nor function modes are sure to.

    Raises:
        RegistrationError: it is.
    """
    if _compiler():
        raise RegistrationError(
            f"{what} runs in compiled code, where rules cannot be relied on; call the model itself rather than "
            f"torch.compile(model), or call it under torch.compiler.set_stance('force_eager')"
        )


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


class OpKey(NamedTuple):
    """What operations are counted by."""

    path: str
    name: str
    rule: Rule | str
    key: Assignment | None
    status: Status
    note: str = ""

    def __hash__(self) -> int:
        """Of what is quickly hashed, which tells most of them apart; this is asked for at each operation."""
        return hash((self.path, self.name, self.status))


class Tally:
    """Counts of modules and operations by path, rule and status; warnings are given once."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.executed = self.carried = False
        self.ops: Counter[OpKey] = Counter()
        self.modules: Counter[Site] = Counter()
        self.units: Counter[Site] = Counter()
        self.shadowed: dict[Site, str] = {}
        self.alone: dict[str, None] = {}
        """Modules that were called on their own rather than by the model."""
        self.cut: dict[str, None] = {}
        """Where the model itself cuts a carrier off from its history, as "Tensor.detach in encoder"."""
        self._warned: set[str] = set()
        self.all_stopped = False
        """Whether rules stopped all relevance of a whole output, so that every input got 0."""

    def notes(self, *, canonized: bool) -> list[str]:
        """What the table of a report cannot say; `canonized` if the composite has canonizers."""
        notes = []
        if not canonized and any(key.name == "batch_norm" and isinstance(key.rule, Epsilon) for key in self.ops):
            notes.append(
                "batch norms keep what is due to their shift, as biases do; where they follow a layer, "
                "canonizers=[MergeBatchNorm()] explains both as one"
            )
        if self.alone:
            alone = ", ".join(fold_names(self.alone))
            notes.append(f"called on their own, so operations between them were not seen: {alone}")
        if self.cut:
            notes.append(f"cut off by the model itself, so no relevance passes: {', '.join(fold_names(self.cut))}")
        if self.all_stopped:
            notes.append("every input got 0: all relevance ended at Stop rules, or at operands that are held constant")
        return notes

    def uncovered(self, path: str, name: str, note: str = "") -> None:
        """Count an operation that relevance passes through without a rule.

        Raises:
            UncoveredError: the composite is strict.
        """
        if self.strict:
            raise UncoveredError(
                f"{name} in {place(path)} carries relevance, but no rule covers it, so the plain "
                f"gradient would pass; give it a rule (a key for the function or for a module around it, "
                f"such as {{{path!r}: Epsilon()}}), or use strict=False and read the report"
            )
        self.ops[OpKey(path, name, "", None, Status.UNCOVERED, note)] += 1

    def warn_dropout(self, path: str) -> None:
        """Warn, once for each path, that dropout makes relevance random."""
        if path in self._warned:
            return
        self._warned.add(path)
        warnings.warn(
            f"dropout is active in {place(path)}, so relevance is that of a randomly thinned model; "
            f"call model.eval() first",
            stacklevel=2,
        )

    def check_between(self, running: Running) -> None:
        """Count the operations that ran between the outermost module that ended last and the one that begins."""
        if running.ended is not None:
            for name in (name for x in running.root_inputs for name in made_since(x, running.ended)):
                self.uncovered("", name, "run between parts of the model that were called on their own")

    def check_unseen(self, tensors: list[Tensor], frame: Frame, running: Running) -> None:
        """Count the operations that made these tensors and that the function mode did not see."""
        if frame.shadowed_by is None:
            for name, note in running.unseen.among(tensors):
                self.uncovered(frame.path, name, note)
