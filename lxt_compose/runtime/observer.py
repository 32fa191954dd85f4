"""Observers of a registered model: the interface by which the ledger and the conservation check see operations.

An observer sees each operation with its carriers before it runs and with its output afterwards. It changes nothing: it
wraps no tensor and adds no node to the autograd graph, but may hang hooks on the nodes that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor

from ..coverage.rows import Status
from ..rules import OpCall, Rule


class Seen(Protocol):
    """One operation that an observer has seen begin."""

    def told(self, rule: Rule | None, status: Status) -> None:
        """Note under which rule the operation runs; None for an exact, an uncovered and a replaced one."""


class Observer(Protocol):
    """Watches a registered model; see :attr:`Session.observer`."""

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that an outermost module begins: the whole model, or a block of it, called on its own or recomputed."""

    def finish(self, output: Any) -> None:
        """Note that the outermost module has ended; `output` is what the caller gets."""

    def begin(self, call: OpCall) -> Seen:
        """Note that an operation begins, or a module that its rule takes as one unit."""

    def end(self, seen: Any, output: Any) -> None:
        """Note that the operation has ended well; `output` is what the rest of the model gets."""

    def constant(self, given: Iterable[Tensor], made: Iterable[Tensor]) -> None:
        """Note that an operation has run through which no relevance flows."""

    def module(self, path: str, kind: str, output: Any) -> None:
        """Note that a module, with or without a rule, has ended well."""


class Following(Protocol):
    """Follows integers through the functions of a forward pass; see :attr:`Session.following`."""

    def run(self, call: Callable[..., Any], func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function by ``call(func, args, kwargs)``; return its output, or others that carry relevance."""


class Watched(Protocol):
    """The state of the thread that is observed."""

    seen: Seen | None


def watch(observer: Observer, stack: Watched, call: OpCall, run: Callable[[], Any]) -> Any:
    """Run one function, and let the observer see its carriers, its output, and what was made of it.

    Args:
        observer: who watches.
        stack: what runs in this thread; it holds what the observer has seen begin.
        call: the call.
        run: runs the function under its rule.
    """
    seen = observer.begin(call)
    outer, stack.seen = stack.seen, seen
    try:
        output = run()
    finally:
        stack.seen = outer
    observer.end(seen, output)
    return output
