"""Constants that came from inputs: outputs that rules have stopped, and results of these."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakValueDictionary

from torch import Tensor

from ..autograd.trees import tensors_in
from ..rules.absorption import CONSTANT, RULE
from .operation import Operation


class Stopped:
    """Tensors without gradients that a rule made of carriers. Relevance that they would get was stopped by the rule."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[int, Tensor] = WeakValueDictionary()

    def follow(self, given: Iterable[Tensor], made: Iterable[Tensor]) -> None:
        """Note that an operation without carriers has run."""
        if self._known and any(map(self.__contains__, given)):
            self._note(made)

    def see(self, operation: Operation, made: Iterable[Tensor]) -> None:
        """Note that an operation with carriers has run."""
        if operation.rule is not None or self.among(operation):
            self._note(made)

    def kind(self, kind: str, operation: Operation) -> str:
        """Return the kind of what an operation absorbs, which by the operation alone is `kind`."""
        return RULE if kind == CONSTANT and self.among(operation) else kind

    def among(self, operation: Operation) -> bool:
        """Return whether such a tensor is among the arguments of an operation."""
        return bool(self._known) and any(x in self for x in tensors_in((operation.args, operation.kwargs)))

    def _note(self, made: Iterable[Tensor]) -> None:
        for x in made:
            if x.is_floating_point() and not x.requires_grad:
                self._known[id(x)] = x
                if x._base is not None and not x._base.requires_grad:  # of which a part was written
                    self._known[id(x._base)] = x._base

    def __contains__(self, x: Tensor) -> bool:
        known = (x,) if x._base is None else (x, x._base)
        return any(self._known.get(id(each)) is each for each in known)
