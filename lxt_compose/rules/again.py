"""What a rule does to calls that are alike, so that it has not to be asked each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


def detached(x: Tensor, place: int) -> Tensor:
    """Return the carrier without its graph."""
    return x.detach()


class Again(NamedTuple):
    """What a rule does to calls that are alike."""

    leave: Callable[[Sequence[Tensor], Tensor, Sequence[Any], Mapping[str, Any]], Tensor]
    """From the carriers, the output, the arguments and the keyword arguments to what the model goes on with."""
    enter: Callable[[Tensor, int], Tensor] | None = detached
    """From a carrier, and its number, to what the operation is given for it; None for the carriers themselves."""
    holds: Callable[[Sequence[Tensor], Sequence[Any]], bool] | None = None
    """Whether this is so for these carriers and arguments; else the rule has to be asked."""
