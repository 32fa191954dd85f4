"""Operations that no function mode sees: custom autograd functions, TorchScript, torch.func, disabled overrides.

Each operation that was seen leaves a mark on the autograd nodes of its outputs (:mod:`lxt_compose.autograd.marks`). A
carrier whose node has none comes from an unseen operation, unless its node only moves gradients or is older than the
forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ..autograd.functions import RelevanceFunction
from ..autograd.marks import MARK, SIGNAL
from ..autograd.nodes import EXACT, function_of_node, kind_of_node, name_of_node
from ..autograd.trees import tensors_in
from ..torch_internals import TRANSPARENT, node_number
from ..torch_internals.backward_hooks import HOOKED_NODE


def made_since(tensor: Tensor, number: int) -> Iterator[str]:
    """Yield the names of the operations that made this tensor, moves aside, and are not older than a number."""
    for node in _unmarked(tensor.grad_fn, number, marked=False):
        yield name_of_node(node)


def unseen_behind(carrier: Tensor, began: int) -> Iterator[tuple[str, str]]:
    """Yield name and note of each operation that made a tensor and that was not seen, once.

    Args:
        carrier: a tensor that is about to be used.
        began: the number of the first autograd node that the forward pass could make.
    """
    for found in _unmarked(carrier.grad_fn, began, marked=True):
        if not isinstance(found, BackwardCFunction):
            yield found.name(), "an operation out of sight, of TorchScript or torch.func maybe"
            continue
        function = function_of_node(found)
        if function is not None and not issubclass(function, (RelevanceFunction, *TRANSPARENT)):
            yield f"{function.__name__}.apply", "custom autograd function"


def unreached(functions: Mapping[Any, tuple[str, Mapping[Any, Any]]], output: Any) -> Iterator[tuple[str, str]]:
    """Yield name and place of each custom function that was given carriers and whose results are none.

    The results were no carriers of any operation, and no output of the model depends on them. So they were not used, or
    the function has marked them as not differentiable: then relevance ends there.

    Args:
        functions: the nodes of their calls, with the modules that they ran in, and their metadata: before torch 2.13 a
            node cannot be asked for it once its results are gone.
        output: of the model.
    """
    pending, met = [x.grad_fn for x in tensors_in(output)], set[Any]()
    while pending:
        node = pending.pop()
        if node is not None and node not in met:
            met.add(node)
            pending += [source for source, _ in node.next_functions]
    for node, (path, metadata) in functions.items():
        if node not in met and MARK not in metadata:
            yield f"{type(node).__name__.removesuffix('Backward')}.apply", path


def _unmarked(first: Any, began: int, *, marked: bool) -> Iterator[Any]:
    """Yield the nodes, from `first` on toward the inputs, that do more than move gradients and are not older.

    Args:
        first: a node.
        began: nodes with a smaller number are older.
        marked: whether to stop at nodes with a mark, and to leave one on those that were looked at.
    """
    pending = [first]
    while pending:
        node = pending.pop()
        if node is None or node_number(node) < began or hasattr(node, "variable") or (marked and MARK in node.metadata):
            continue
        if marked and type(node) is not HOOKED_NODE:
            node.metadata[MARK] = SIGNAL
        function = function_of_node(node)
        if marked and function is not None and issubclass(function, RelevanceFunction):
            continue  # a node of a rule: the operations behind it were seen
        if kind_of_node(node) == EXACT:
            pending += [source for source, _ in node.next_functions]
        else:
            yield node
