"""Operations that no function mode sees: custom autograd functions, TorchScript, torch.func, disabled overrides.

Autograd numbers its nodes in the order in which they are made. Between two functions that the mode sees no number
should pass. If some do, a tensor whose node has such a number comes from an operation that nobody saw.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from torch import Tensor
from torch._C._autograd import _get_sequence_nr
from torch.autograd.function import BackwardCFunction
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils.checkpoint import CheckpointFunction

from ..autograd.functions import RelevanceFunction
from ..autograd.nodes import EXACT, kind_of_node, name_of_node

# They are identities, or what is in them is seen when it is recomputed.
_TRANSPARENT = (RelevanceFunction, BackwardHookFunction, CheckpointFunction)


def latest() -> int:
    """The number that the next node of this thread gets."""
    number: int = _get_sequence_nr()
    return number


def made_since(tensor: Tensor, number: int) -> Iterator[str]:
    """The names of the operations that made this tensor and are not older than this number; moves are passed over."""
    pending = [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node._sequence_nr() < number or hasattr(node, "variable"):
            continue
        if kind_of_node(node) == EXACT:
            pending += [source for source, _ in node.next_functions]
        else:
            yield name_of_node(node)


class Unseen:
    """The gaps in what was seen in one thread: from one number of a node up to another, in ascending order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._told: set[int] = set()
        self._last = _get_sequence_nr()

    def begin(self) -> int:
        """Something that is seen begins: what was made since the last such thing was made by others.

        Returns:
            The number of gaps so far.
        """
        now = _get_sequence_nr()
        if now > self._last:
            self._starts.append(self._last)
            self._ends.append(now)
            self._last = now
        return len(self._starts)

    def end(self) -> None:
        """Something that is seen has ended: all that was made meanwhile is its."""
        self._last = _get_sequence_nr()

    def forget(self, count: int) -> None:
        """Drop the gaps but the first `count`: the others are inside a module that has a rule as a whole."""
        del self._starts[count:], self._ends[count:]

    def among(self, tensors: Iterable[Tensor]) -> Iterator[tuple[str, str]]:
        """Name and note of those operations among the ones that made these tensors which nobody saw; each once."""
        if not self._starts:
            return
        for tensor in tensors:
            node = tensor.grad_fn
            if node is None:
                continue
            number = node._sequence_nr()
            gap = bisect_right(self._starts, number) - 1
            if gap < 0 or number >= self._ends[gap] or number in self._told:
                continue
            self._told.add(number)
            if not isinstance(node, BackwardCFunction):
                yield node.name(), "an operation out of sight, of TorchScript or torch.func maybe"
                continue
            function = getattr(type(node), "_forward_cls", type(node))
            if not issubclass(function, _TRANSPARENT):
                yield f"{function.__name__}.apply", "custom autograd function"
