"""Heads of attention: queries, keys, values and outputs, at the functions that compute with them.

It does not matter how a model computes queries, keys and values (separately, fused, with a rotation, with fewer keys
than queries): they are taken at the call of scaled dot product attention, or at the two products around a softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..ops import Family, op_of
from ..torch_internals import function_modes
from ..torch_internals.attention import attention_body

Dims = tuple[str, ...]
VisitSide = Callable[[str, Tensor, Dims], Tensor | None]
"""Takes a side, its tensor and the names of its dimensions; returns a replacement, or None."""

TALL: Dims = ("batch", "head", "token", "feature")
WIDE: Dims = ("batch", "head", "feature", "token")
"""The dimensions of transposed keys."""
_INPUTS = ("query", "key", "value")


class AttentionSides(TorchFunctionMode):
    """Calls a function on the sides of each attention, while one module runs.

    Args:
        visit: the function.
    """

    def __init__(self, visit: VisitSide) -> None:
        super().__init__()
        self._visit, self._on = visit, False
        self._weights: Any = None
        """The size of the softmax that ran last, until its product with the values."""

    def start(self) -> None:
        """Begin to watch."""
        self._weights, self._on = None, True
        self.__enter__()

    def stop(self) -> None:
        """Stop watching; if an interrupt has left another mode on top, this one does nothing from now on."""
        self._on = False
        if function_modes()[-1:] == [self]:
            self.__exit__(None, None, None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function; the sides of attention may be exchanged before and after."""
        kwargs, op = kwargs or {}, op_of(func)
        if op is None or not self._on:
            return func(*args, **kwargs)
        if op.family is Family.ATTENTION and op.traits.has_projections:
            with self:
                return attention_body()(*args, **kwargs)
        if op.family is Family.ATTENTION:
            return self._attention(func, args, kwargs)
        if op.family is Family.CONTRACTION:
            return self._product(func, args, kwargs)
        output = func(*args, **kwargs)
        if op.family is Family.SOFTMAX and isinstance(output, Tensor) and output.dim() == 4:
            self._weights = output.shape
        return output

    def _attention(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(_INPUTS, args, strict=False)) | {side: kwargs[side] for side in _INPUTS if side in kwargs}
        if any(x.dim() != 4 for x in given.values()):
            return func(*args, **kwargs)
        given = {side: self._exchanged(side, x, TALL) for side, x in given.items()}
        args = tuple(given.get(side, x) for side, x in zip((*_INPUTS, *[""] * len(args)), args, strict=False))
        kwargs = {side: given.get(side, x) for side, x in kwargs.items()}
        return self._exchanged("heads", func(*args, **kwargs), TALL)

    def _product(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the product of queries and keys, or of weights and values, or any other."""
        tensors = [x for x in args if isinstance(x, Tensor) and not isinstance(x, nn.Parameter)]
        if len(args) != 2 or len(tensors) != 2 or any(x.dim() != 4 for x in tensors):
            return func(*args, **kwargs)
        left, right = tensors
        if self._weights == left.shape:
            self._weights = None
            output = func(left, self._exchanged("value", right, TALL), **kwargs)
            return self._exchanged("heads", output, TALL)
        return func(self._exchanged("query", left, TALL), self._exchanged("key", right, WIDE), **kwargs)

    def _exchanged(self, side: str, x: Tensor, dims: Dims) -> Tensor:
        other = self._visit(side, x, dims)
        return x if other is None else other


def key_groups(module: nn.Module, x: Tensor, queries: int | None) -> int:
    """Return how many consecutive heads of keys (or values) are copies of one, as in grouped-query attention.

    Models that repeat keys before attention give the number as ``num_key_value_groups`` of the module that computes it.

    Args:
        module: the module that was named; the one that computes attention is it, or inside.
        x: keys or values, [batch, heads, ...].
        queries: the number of heads of the queries; None: not met yet.
    """
    groups = [n for m in module.modules() if isinstance(n := getattr(m, "num_key_value_groups", None), int)]
    repeated = groups and x.shape[1] == queries and x.shape[1] % groups[0] == 0
    return groups[0] if repeated else 1
