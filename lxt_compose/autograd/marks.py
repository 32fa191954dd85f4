"""Marks: what is known of a tensor's history, written on the autograd node that made it (`Node.metadata`).

A mark is a plain value and holds no tensor. A leaf has no node, so its history is that of a signal. The identities that
torch puts around a module with full backward hooks have no mark; the node behind them counts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from enum import IntEnum
from math import isfinite
from typing import Any, NamedTuple

from torch import Tensor

from ..torch_internals.backward_hooks import HOOKED_NODE, past_hooks

MARK = "lxt_compose: history"
"""The key in the metadata of an autograd node; present if the function mode saw the operation of the node."""
Values = tuple[float, ...]
"""The values of a function of one variable at :data:`INPUTS`."""
INPUTS: Values = (-1e60, -1e30, 0.0, 1e30, 1e60)
_CLOSE = 1e-9


class Gate(IntEnum):
    """To what degree a factor is a gate, which scales a signal, from no gate to one that opens and closes."""

    NONE = 0
    """A signal: an input, or the output of a layer, a norm, a softmax or a sum."""
    ACTIVATION = 1
    """The output of an activation."""
    BOUNDED = 2
    """The output of an activation whose values have limits on both sides (tanh)."""
    OPENS = 3
    """The output of an activation f with two limits, f(0) between them and not 0 (sigmoid)."""


class History(NamedTuple):
    """What is known of a tensor.

    Attributes:
        gate: to what degree it is a gate.
        values: the values, at :data:`INPUTS`, of the elementwise functions since the last signal.
        degree: the number of factors of each of its terms: carriers that were multiplied with each other.
    """

    gate: Gate
    values: Values
    degree: float = 1


SIGNAL = History(Gate.NONE, INPUTS)


def signal(degree: float) -> History:
    """Return the history of a signal whose terms have so many factors."""
    return SIGNAL if degree == 1 else History(Gate.NONE, INPUTS, degree)


def gate_of(values: Values) -> Gate:
    """Return to what degree the output of an activation with these values is a gate."""
    far_below, below, center, above, far_above = values
    low, high = sorted((below, above))
    scale = max(abs(low), abs(high))
    if not (_same(far_below, below) and _same(far_above, above) and isfinite(center)):
        return Gate.ACTIVATION
    between = low < center < high and abs(center) > _CLOSE * scale
    return Gate.OPENS if between else Gate.BOUNDED


def _same(a: float, b: float) -> bool:
    return isfinite(a) and isfinite(b) and abs(a - b) <= _CLOSE * (1 + abs(a))


def history_of(x: Tensor) -> History:
    """Return the history of a tensor."""
    node: Any = x.grad_fn
    if node is None:
        return SIGNAL
    found: History | None = node.metadata.get(MARK)
    if found is None:
        node = past_hooks(node, x.output_nr)[0]
        found = SIGNAL if node is None else node.metadata.get(MARK)
    return SIGNAL if found is None else found


def mark(tensors: Iterable[Tensor], history: History) -> None:
    """Write a history on the autograd nodes of these tensors."""
    for tensor in tensors:
        node: Any = tensor.grad_fn
        if node is not None:
            node.metadata[MARK] = history


def mark_seen(tensors: Iterable[Tensor]) -> None:
    """Mark these tensors as made by an operation that was seen, where they have no mark yet."""
    for tensor in tensors:
        node: Any = tensor.grad_fn
        if node is not None and type(node) is not HOOKED_NODE:
            node.metadata.setdefault(MARK, SIGNAL)


class Constants:
    """Histories of tensors that have no autograd node, since a rule took their operations out of the graph.

    Tensors are held weakly.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], History]] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def give(self, tensor: Tensor, history: History) -> None:
        """Note the history of a tensor; if it has a node, by a mark."""
        if tensor.requires_grad:
            mark((tensor,), history)
        else:
            self._known[id(tensor)] = weakref.ref(tensor), history

    def get(self, tensor: Tensor) -> History | None:
        """Return the history of a tensor; None if it is a plain constant."""
        if tensor.requires_grad:
            return history_of(tensor)
        reference, history = self._known.get(id(tensor), (None, SIGNAL))
        return history if reference is not None and reference() is tensor else None

    def among(self, tensors: Iterable[Tensor]) -> tuple[list[Tensor], list[History]]:
        """Return the tensors that have a history here, and their histories."""
        found = [(tensor, known) for tensor in tensors if (known := self.get(tensor)) is not None]
        return [tensor for tensor, _ in found], [known for _, known in found]

    def clear(self) -> None:
        """Drop all notes."""
        self._known.clear()
