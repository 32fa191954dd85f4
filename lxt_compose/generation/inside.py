"""Relevance inside the model: of tokens after each block, and of the values that each attention head moves."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.latent import blocks
from ..concepts.units import Place
from ..concepts.visits import Visit, Visits
from ..errors import AttributionError

VALUE = "value"


@dataclass(frozen=True)
class Layers:
    """Relevance in each layer, the first one nearest to the input.

    ``tokens`` [rows, layers, tokens] is that of the tokens after each block, ``heads`` [rows, layers, heads, tokens]
    that of the values that each head of attention takes from them; None if the layers have different numbers of heads,
    or their attention was not seen. Tokens are those that the blocks read: all but the last of the answer.
    """

    names: tuple[str, ...]
    tokens: Tensor
    heads: Tensor | None


class Inside:
    """Keeps tensors inside a model, at which relevance is read, in its next forward pass; a context manager.

    Args:
        model: the model; its repeated blocks are the layers.
        length: how many tokens they read.

    Raises:
        AttributionError: the model has no repeated blocks.
    """

    def __init__(self, model: nn.Module, length: int) -> None:
        modules, self.names = dict(model.named_modules()), blocks(model)
        if not self.names:
            raise AttributionError(f"{type(model).__name__} has no repeated blocks, so it has no layers to look into")
        self._length, self._found = length, dict[str, tuple[Tensor, Tensor]]()
        places = [Place(name + side, modules[name], side[1:]) for name in self.names for side in ("", f":{VALUE}")]
        self._visits, self._stack = Visits(model, places, self._look), ExitStack()

    def __enter__(self) -> Inside:
        self._stack.enter_context(self._visits)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _look(self, visit: Visit) -> None:
        x, name = visit.tensor, visit.place.name
        tokens = x.shape[2] if visit.place.side and x.dim() == 4 else x.shape[1] if x.dim() == 3 else 0
        if name not in self._found and tokens == self._length and len(x) == 1 and x.requires_grad:
            self._found[name] = x, x.detach().clone()  # the model may go on to change it

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors, in a fixed order."""
        return [x for x, _ in self._found.values()]

    def relevance(self, slots: Sequence[Tensor], *, times_value: bool) -> dict[str, Tensor]:
        """Return the relevance of tokens, [tokens] or [heads, tokens], by the names of places.

        Args:
            slots: the slot of each of the tensors.
            times_value: whether relevance is the slot times the tensor.
        """
        pairs = zip(self._found.items(), slots, strict=True)
        return {name: ((value * slot) if times_value else slot)[0].sum(-1).cpu() for (name, (_, value)), slot in pairs}

    def gathered(self, rows: Sequence[dict[str, Tensor]]) -> Layers:
        """Return the relevance of all rows.

        Raises:
            AttributionError: no block put out a tensor with these tokens.
        """
        names = [name for name in self.names if name in self._found]
        if not names:
            raise AttributionError("no block put out one vector for each token that was read, so there are no layers")
        tokens = torch.stack([torch.stack([row[name] for name in names]) for row in rows])
        of_heads = [f"{name}:{VALUE}" for name in names]
        shapes = {rows[0][name].shape for name in of_heads if name in self._found}
        whole = len(shapes) == 1 and all(name in self._found for name in of_heads)
        heads = torch.stack([torch.stack([row[name] for name in of_heads]) for row in rows]) if whole else None
        return Layers(tuple(names), tokens, heads)


def length_of(ids: Any) -> int:
    """Return how many tokens the blocks read: those of the decoder, if there is one."""
    read = ids.get("decoder_input_ids", ids.get("input_ids"))
    return int(read.shape[-1])
