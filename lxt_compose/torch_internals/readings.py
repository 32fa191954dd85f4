"""Values that are read during a trace, which are computed outside of it and recorded, since the graph depends on them.

A graph holds operations on its inputs. Which operations these are (where an activation is expanded, whether an exponent
is positive) is decided during the trace by numbers, parameters and buffers, whose values are constants of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import TraceError
from .graph_memory import memory_of, written
from .traces import is_fake, is_traced, proxy_of, untraced

_SMALL = 64
"""The most elements of a tensor that is compared in each call."""
_LARGEST = 4096
"""The most elements of a tensor of which the values are kept, to detect a change."""


class Reading:
    """A tensor whose values were read, and the values."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._stamp = _stamp(tensor)
        self._value = tensor.detach().clone() if tensor.numel() <= _LARGEST else None

    def holds(self) -> bool:
        """Return whether the tensor has the same values; for a large one, whether torch counts no change of it.

        A change through ``weight.data`` is not counted.
        """
        if self._stamp == (now := _stamp(self.tensor)) and self.tensor.numel() > _SMALL:
            return True
        if self._value is None or not torch.equal(self._value, self.tensor):
            return False
        self._stamp = now
        return True


def _stamp(tensor: Tensor) -> tuple[int, int]:
    return tensor._version, tensor.data_ptr()


_noted: ContextVar[dict[int, Reading] | None] = ContextVar("readings", default=None)


@contextmanager
def noting_readings() -> Iterator[dict[int, Reading]]:
    """Record the tensors whose values are read in this context, by identity."""
    noted: dict[int, Reading] = {}
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


class WatchingModels(TorchDispatchMode):
    """Records values that a model reads itself, such as by ``weight.item()``.

    What follows from weights and shapes alone has its value while it is traced, and is read then.
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """See :class:`torch.utils._python_dispatch.TorchDispatchMode`."""
        if torch.Tag.data_dependent_output in getattr(func, "tags", ()):
            read = [x for x in args if isinstance(x, Tensor)]
            note_readings([x for x in read if proxy_of(x) is None])
            if any(proxy_of(x) is not None for x in read) and all(map(_has_value, read)):
                note_readings(read)
                with untraced():
                    return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


if not hasattr(TorchDispatchMode, "supports_higher_order_operators"):  # torch 2.4 and 2.5 ask for each such operator
    torch.ops.higher_order.cond.py_impl(WatchingModels)(lambda mode, *given: torch.ops.higher_order.cond(*given))


def note_readings(tensors: Sequence[Tensor]) -> None:
    """Record that a trace, if there is one, depends on the values of these tensors, parameters or buffers.

    Raises:
        TraceError: the graph computes one of them from its inputs, so it has no value yet.
    """
    if not is_traced():
        return
    noted = _noted.get()
    for tensor in tensors:
        for one in _read_for(tensor):
            if noted is not None and id(one) not in noted:
                with untraced():
                    noted[id(one)] = Reading(one)


def _read_for(tensor: Tensor) -> list[Tensor]:
    """Return the tensors on which the value of another one depends: itself, or the weights that it is computed from.

    Raises:
        TraceError: inputs of the graph are among them, or it has no values.
    """
    proxy = proxy_of(tensor)
    if proxy is None:
        return [tensor]
    if getattr(proxy, "constant", None) is not None:
        return []
    found = list[Tensor]()
    for node in _sources(proxy.proxy.node):
        if node.op == "placeholder" or is_fake(tensor):
            raise TraceError(
                f"the value of a tensor of shape {list(tensor.shape)} decides how relevance passes, but the graph "
                f"that is written down computes it; make it a number, a parameter or a buffer of the model"
            )
        if node.op == "get_attr":
            found.append(getattr(proxy.proxy.tracer.root, str(node.target)))
    return found


def _sources(node: Node) -> set[Node]:
    """Return the nodes that the value of one depends on now: what it is computed from, and what was written to it."""
    met, pending = set[Node](), [node]
    while pending:
        one = pending.pop()
        if one in met:
            continue
        met.add(one)
        pending += one.all_input_nodes if filled_with(one) is None else ()
        pending += [user for each in memory_of(one) for user in each.users if each in written(user)]
    return met


def _has_value(tensor: Tensor) -> bool:
    """Return whether a tensor has a value during a trace: no input is behind it, and nothing drawn at random."""
    if is_fake(tensor):
        return False
    proxy = proxy_of(tensor)
    nodes = set[Node]() if proxy is None else _sources(proxy.proxy.node)
    drawn = torch.Tag.nondeterministic_seeded
    return not any(node.op == "placeholder" or drawn in getattr(node.target, "tags", ()) for node in nodes)


_ATEN = torch.ops.aten
_ZEROS = (_ATEN.zeros.default, _ATEN.zeros_like.default, _ATEN.new_zeros.default)
_ONES = (_ATEN.ones.default, _ATEN.ones_like.default, _ATEN.new_ones.default)
_NUMBERS = {_ATEN.full.default: 1, _ATEN.full_like.default: 1, _ATEN.new_full.default: 2}
_SAME = (_ATEN.view.default, _ATEN.expand.default, _ATEN.detach.default, _ATEN.select.int)


def filled_with(node: Any) -> float | None:
    """Return the number with which the node of a graph fills a tensor; None for other nodes."""
    while node.target in _SAME and isinstance(node.args[0], Node):
        node = node.args[0]
    value = 0 if node.target in _ZEROS else 1 if node.target in _ONES else None
    if node.target in _NUMBERS:
        value = node.args[_NUMBERS[node.target]]
    return value if isinstance(value, (int, float)) else None


def values_of(*tensors: Tensor) -> AbstractContextManager[None]:
    """Return a context that computes with values, outside of a trace.

    Args:
        *tensors: the tensors whose values are read.

    Raises:
        TraceError: the graph computes one of them.
    """
    if not is_traced():
        return nullcontext()
    note_readings(tensors)
    return untraced()


def number_in(tensor: Tensor) -> Any:
    """Return the number that all elements of a tensor have.

    Raises:
        TraceError: a graph computes it from its inputs.
    """
    proxy = proxy_of(tensor) if is_traced() else None
    if proxy is not None:
        constant = getattr(proxy, "constant", None)
        number = None if tensor._version else filled_with(proxy.proxy.node)  # else something was written to it
        if constant is not None or number is not None:
            with untraced():  # what is done with a constant is no part of the graph
                return number if constant is None else constant.flatten()[0].item()
    with values_of(tensor):
        return tensor.flatten()[0].item()
