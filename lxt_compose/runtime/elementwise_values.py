"""Values of compositions of elementwise functions far below 0, at 0 and far above."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..autograd.marks import Values
from ..autograd.trees import PLAIN, plain
from ..torch_internals import modes_off
from ..torch_internals.readings import values_of


class _Carrier:
    """Stands for the carrier among arguments."""


_CARRIER = _Carrier()


def values_after(
    before: Values, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], x: Tensor
) -> Values | None:
    """Return the values of a function after another; None if its other arguments are no numbers.

    Args:
        before: the values of the other.
        function: the function.
        args: what it is called with.
        kwargs: the same by keyword.
        x: the carrier among that.
    """

    def number(value: Any) -> Any:
        if value is x:
            return _CARRIER
        value = plain(value)
        if type(value) not in PLAIN:
            raise TypeError
        return value

    try:
        given = tuple([number(value) for value in args])
        named = tuple([(name, number(value)) for name, value in kwargs.items()])
    except TypeError:
        return None
    return _evaluate(function, given, named, before)


@lru_cache(maxsize=4096)
def _evaluate(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...], before: Values
) -> Values | None:
    with values_of(), torch.no_grad(), modes_off():
        x = torch.tensor(before, dtype=torch.float64, device="cpu")
        given = [x if value is _CARRIER else value for value in args]
        try:
            after = function(*given, **{name: x if value is _CARRIER else value for name, value in kwargs})
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return None
        if not isinstance(after, Tensor) or after.shape != x.shape or not after.is_floating_point():
            return None
        return tuple(after.tolist())
