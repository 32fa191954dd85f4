"""The rule for tables that are looked up by index, where the table itself carries relevance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..autograd.functions import Slots, bypass
from .base import Call, Rule


@dataclass(frozen=True)
class Lookup(Rule):
    """Each row of a table, one for padding too, gets the relevance of all places at which it was read.

    ``z_t = W[i_t]``: ``R_W[j] = sum over t with i_t = j of R_t``; in the gradient formulation the same with g. An
    embedding's own gradient may be one for training: without the row ``padding_idx``, divided by how often a row was
    read (``scale_grad_by_freq``), or sparse. The rule ignores these options.

    Source: movement of values, as in Bach et al. 2015.
    """

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        indices = call.kwargs["input"] if "input" in call.kwargs else call.args[0]
        return [bypass(partial(_gathered, call.values[0].shape), z, (indices,), call.carriers) for z in outputs]


def is_for_training(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether the own gradient of this call of an embedding is one for training, and not that of the values."""
    places = {"padding_idx": 2, "scale_grad_by_freq": 5, "sparse": 6}
    given = (kwargs.get(name, args[place] if len(args) > place else None) for name, place in places.items())
    return any(value is not None and value is not False for value in given)


def _gathered(shape: torch.Size, slot: Tensor, indices: Tensor) -> Slots:
    rows = slot.reshape(-1, shape[-1])
    return (slot.new_zeros(shape).index_add(0, indices.reshape(-1), rows),)
