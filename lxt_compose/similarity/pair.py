"""A model that embeds, run on two inputs: the similarity of both embeddings as one output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pooling = Callable[[Any, Mapping[str, Any]], Tensor]
COSINE, DOT = "cosine", "dot"
MEASURES = (COSINE, DOT)
_EMBEDDINGS = ("sentence_embedding", "text_embeds", "image_embeds", "pooler_output")


def mean(output: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Return the mean of the last hidden states of real tokens, [n, features]."""
    states, mask = _states(output), inputs.get("attention_mask")
    if mask is None:
        return states.mean(1)
    weights = mask.to(states.dtype)[..., None] / mask.sum(1)[:, None, None]
    return (states * weights).sum(1)


def first(output: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Return the last hidden state of the first token, such as ``[CLS]``, [n, features]."""
    return _states(output)[:, 0]


def last(output: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Return the last hidden state of the last real token, [n, features]."""
    states, mask = _states(output), inputs.get("attention_mask")
    if mask is None:
        return states[:, -1]
    real = mask != 0
    places = real.shape[1] - 1 - real.flip(1).long().argmax(1)
    return states[torch.arange(len(states), device=states.device), places]


def embedding(output: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Return the model's own embedding, [n, features]: the output, or its entry of that name.

    Raises:
        TypeError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    known = dict(output) if isinstance(output, Mapping) else {}
    found = next((known[name] for name in _EMBEDDINGS if isinstance(known.get(name), Tensor)), None)
    if found is None:
        raise TypeError(
            f"the output has none of {', '.join(_EMBEDDINGS)}; pooling= one of {', '.join(map(repr, POOLINGS))}, or a "
            f"function of the output and the inputs"
        )
    return found


POOLINGS: dict[str, Pooling] = {"mean": mean, "first": first, "last": last, "embedding": embedding}
"""Functions from the output to one vector for each input, by name."""


def _states(output: Any) -> Tensor:
    found = getattr(output, "last_hidden_state", output)
    if not isinstance(found, Tensor) or found.dim() != 3:
        raise TypeError(
            f"pooling over tokens needs last_hidden_state [n, tokens, features], got {type(found).__name__}"
            f"{list(found.shape) if isinstance(found, Tensor) else ''}; pooling='embedding', or a function"
        )
    return found


def pooling_of(pooling: Any) -> Pooling:
    """Return a pooling by its name, or the function itself.

    Raises:
        ValueError: there is none of this name.
    """
    if callable(pooling):
        return pooling
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(map(repr, POOLINGS))}, or a function, got {pooling!r}")
    return POOLINGS[pooling]


class Pair(nn.Module):
    """The similarity of two inputs, [n]: ``e(a) . e(b)``, for the cosine over ``|e(a)| |e(b)|``."""

    def __init__(self, model: nn.Module, pooling: Pooling, measure: str) -> None:
        super().__init__()
        self.model, self.pooling, self.measure = model, pooling, measure
        self.training = model.training

    @property
    def config(self) -> Any:
        """That of the model, if it has one."""
        return getattr(self.model, "config", None)

    def forward(self, first: dict[str, Any], second: dict[str, Any]) -> Tensor:
        """Return the similarity of both."""
        a, b = (self.pooling(self.model(**one), one) for one in (first, second))
        return F.cosine_similarity(a, b) if self.measure == COSINE else (a * b).sum(1)
