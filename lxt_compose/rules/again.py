"""What a rule does to calls that are alike, so that it has not to be asked each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Again(NamedTuple):
    """What a rule does to calls that are alike."""

    leave: Callable[[Sequence[Tensor], Tensor, Sequence[Any], Mapping[str, Any]], Tensor]
    """From the carriers, the output, the arguments and the keyword arguments to what the model goes on with."""
    as_they_are: bool = False
    """Whether the operation is given the carriers themselves; else the only one of them, detached."""
