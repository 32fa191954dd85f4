"""A right gradient for reductions that select the largest or smallest element and leave out what was there before.

In torch 2.13 the gradient of ``scatter_reduce(..., "amax", include_self=False)`` and ``index_reduce`` still counts the
element of `self` among those that it is shared by, if it happens to equal the result: a part of it is lost. Here that
element becomes -inf (inf for the smallest) first, which changes no value of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from ..ops import Family, Op, mutates


def with_right_selection(function: Callable[..., Any], op: Op | None) -> Callable[..., Any]:
    """Return a function of torch as it is, or one whose gradient does not count what is left out.

    Args:
        function: the function.
        op: its operation.
    """
    if op is None or op.traits.reduction is None or not op.traits.fill:
        return function
    reduction, fill = op.traits.reduction, op.traits.fill

    @wraps(function)
    def reduced(*args: Any, **kwargs: Any) -> Any:
        selects = op.family_of_call(args, kwargs) is Family.MOVEMENT
        if not selects or kwargs.get("include_self", True) or "out" in kwargs or len(args) < 3:
            return function(*args, **kwargs)
        into, dim, index, *rest = args
        least = -torch.inf if reduction.of(args, kwargs) == "amax" else torch.inf
        if not into.is_floating_point():
            return function(*args, **kwargs)
        put = getattr(into, fill + "_" * mutates(function, args, kwargs))
        return function(put(dim, index, least), dim, index, *rest, **kwargs)

    return reduced
