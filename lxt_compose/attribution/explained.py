"""What a graph gives for one call."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Explained(NamedTuple):
    """What a graph found, on the device of the model.

    ``relevance`` is that of the input, or of each by name if there are several, ``output`` [n] the number that is
    explained, ``target`` [n] or [n, 2] the index or pair, None if a function chose, ``layers`` the relevance of the
    layers asked for. With several targets there is a row for each sample and target, those of a sample in turn.
    """

    relevance: Any
    output: Tensor
    target: Tensor | None
    layers: dict[str, Tensor]
