"""What is noted of the tensors of a forward pass that may become a softmax."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..autograd.functions import graft
from ..autograd.nodes import origin_of
from ..ops import Family, Op, mutates
from .policy import FunctionInfo
from .powers import LogSum, Powers, Shifted, Softmax
from .spread import Spread


def value_of(way: Tensor, value: Tensor) -> Tensor:
    """Return a value that the model has computed, with the way back of another computation of it."""
    return graft(value, way)


MARK = "lxt_compose: softmax"
"""The key in the metadata of an autograd node, with the place of the tensor among what the node stands for."""
Note = Powers | Shifted | LogSum | Softmax | Spread


class _Held:
    """What is noted of a tensor, until the forward pass is over."""

    __slots__ = ("__weakref__", "what")

    def __init__(self, what: Note) -> None:
        self.what: Note | None = what


class Notes:
    """What was noted of tensors: marks on their autograd nodes; of constants, by the tensors themselves.

    A note must not keep a node alive, since that keeps what is saved behind it: :meth:`clear` knows notes weakly.
    """

    __slots__ = ("_of_carriers", "_of_constants", "active")

    def __init__(self) -> None:
        self._of_carriers: list[weakref.ref[_Held]] = []
        self._of_constants: dict[tuple[int, int], tuple[Tensor, Note]] = {}
        self.active = False
        """Whether all that follows is to be looked at, since steps may lead on from what was noted."""

    def of(self, x: Any) -> Note | None:
        """Return what was noted of an argument of a call."""
        if not isinstance(x, Tensor):
            return None
        if x.is_inference():  # which has no version
            return None
        if not x.requires_grad:
            return self._of_constants.get((id(x), x._version), (None, None))[1]
        if x.grad_fn is None:
            return None
        node, place = origin_of(x)
        held: _Held | None = node.metadata.get((MARK, place))
        return None if held is None else held.what

    def enter(self, output: Any, what: Note | Callable[[Tensor], Note] | None) -> None:
        """Note something of the output of a call; or what a function makes of the output."""
        if what is None or not isinstance(output, Tensor) or output.is_inference():
            return
        if output.grad_fn is not None:
            what = what(output) if callable(what) else what
            if self.of(output) is None:  # some operations return their input
                node, place = origin_of(output)
                held = node.metadata[MARK, place] = _Held(what)
                self._of_carriers.append(weakref.ref(held))
        elif isinstance(what, LogSum) or (isinstance(what, Powers) and what.inverse):  # a division may hold it constant
            self._of_constants[id(output), output._version] = output, what
        self.active |= isinstance(what, (Powers, LogSum))

    def clear(self) -> None:
        """Forget all notes."""
        for reference in self._of_carriers:
            if (held := reference()) is not None:
                held.what = None
        self._of_carriers.clear()
        self._of_constants.clear()
        self.active = False


def product_with_powers(
    info: FunctionInfo, notes: Notes, args: tuple[Any, ...], kwargs: dict[str, Any], carriers: list[Tensor]
) -> Spread | None:
    """Return a product of powers and another carrier; None if a call is another operation."""
    op = info.op
    if op is None or len(carriers) != 2 or op.addends or op.family not in (Family.CONTRACTION, Family.PRODUCT):
        return None
    if carriers[0] is carriers[1] or (info.can_mutate and mutates(info.function, args, kwargs)):
        return None
    found = [(x, known) for x in carriers if isinstance(known := notes.of(x), Powers) and not known.inverse]
    made = [Spread(powers, e, op, info.function, args, kwargs) for e, powers in found]
    if len(made) == 2:
        made[0].other = made[1]
    return made[0] if made else None


def dividend_and_divisor(op: Op, found: list[Note | None]) -> tuple[Powers | Spread, Powers] | None:
    """Return dividend and divisor of a quotient, if both are known powers, or the dividend a product with them."""
    if op.family not in (Family.DIVISION, Family.PRODUCT) or len(found) != 2:
        return None
    one, other = reversed(found) if 0 in op.held else found
    if op.family is Family.PRODUCT and isinstance(one, Powers) and one.inverse:
        one, other = other, one
    if not isinstance(one, (Powers, Spread)) or not isinstance(other, Powers):
        return None
    return (one, other) if other.inverse is (op.family is Family.PRODUCT) else None
