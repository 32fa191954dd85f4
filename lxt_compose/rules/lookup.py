"""The rule for tables that are looked up by index, where the table itself carries relevance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..gradients import Slots, bypass
from .base import Call, Rule


@dataclass(frozen=True)
class Lookup(Rule):
    """Each row of a table gets the relevance of all places that it was read at, a row reserved for padding too.

    ``z_t = W[i_t]``: ``R_W[j] = sum over t with i_t = j of R_t``; in the gradient formulation the same with g. The own
    gradient of an embedding leaves the row ``padding_idx`` out, since it is not to be trained; its relevance exists.

    Source: movement of values, as in Bach et al. 2015.
    """

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        indices = call.kwargs["input"] if "input" in call.kwargs else call.args[0]
        return [bypass(partial(_gathered, call.values[0].shape), z, (indices,), call.carriers) for z in outputs]


def leaves_out_padding(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether this call of an embedding has a row that its own gradient leaves out."""
    return kwargs.get("padding_idx", args[2] if len(args) > 2 else None) is not None


def _gathered(shape: torch.Size, slot: Tensor, indices: Tensor) -> Slots:
    rows = slot.reshape(-1, shape[-1])
    return (slot.new_zeros(shape).index_add(0, indices.reshape(-1), rows),)
