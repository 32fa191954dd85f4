"""The positions that a model has for a prompt and its answer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from .prompts import Prompt

_SETTINGS = ("max_position_embeddings", "max_target_positions", "max_decoder_position_embeddings")
_TABLE = re.compile(r"wpe|pos(ition)?s?_?emb|embed_pos")
_BESIDE = re.compile(r"(^|[._])(encoder|vision|image|audio|visual)")
_FIRST = 8
"""Rows that a table may have beside those of positions, as OPT's has."""


def check_positions(model: nn.Module, prompt: Prompt, count: int) -> None:
    """Raise or warn if a model has no position for each token of a prompt and of an answer of `count` tokens.

    The last token of the answer is not read, so it needs none.

    Raises:
        ValueError: there are more than the rows of its table of positions.
    """
    before, limit = len(prompt.start or prompt.ids), _trained(model)
    if limit is None or before + count - 1 <= limit:
        return
    rows = _rows(model, limit)
    start = "the start of the answer" if prompt.start else "the prompt"
    what = f"{start} has {before} tokens and {count} follow, of which the last is not read, but {type(model).__name__}"
    if rows is None:
        warnings.warn(
            f"{what} was trained on {limit} positions by its configuration: what it makes of later ones, and so what "
            f"is explained, may mean little",
            stacklevel=2,
        )
    elif before + count - 1 > rows:
        raise ValueError(f"{what} has positions for {rows}; give a shorter prompt, or ask for fewer tokens")


def asked_for(model: nn.Module, prompt: Prompt, options: Mapping[str, Any]) -> int | None:
    """Return how many tokens the options of ``generate`` ask for at most; None if they do not say."""
    config = options.get("generation_config")
    for place in (options, {} if config is None else vars(config)):
        new, whole = place.get("max_new_tokens"), place.get("max_length")
        if isinstance(new, int):
            return new
        if isinstance(whole, int):
            return whole - len(prompt.start or prompt.ids)
    return None


def _trained(model: nn.Module) -> int | None:
    """Return the number of positions that the configuration names."""
    config = getattr(model, "config", None)
    of_text = getattr(config, "get_text_config", None)
    config = config if of_text is None else of_text(decoder=True)
    found = (getattr(config, name, None) for name in _SETTINGS)
    return next((limit for limit in found if isinstance(limit, int) and limit > 0), None)


def _rows(model: nn.Module, limit: int) -> int | None:
    """Return for how many positions the table of the model's decoder has rows; None without one."""
    for name, module in model.named_modules():
        fits = isinstance(module, nn.Embedding) and limit <= module.num_embeddings <= limit + _FIRST
        if fits and _TABLE.search(name) and not _BESIDE.search(name):
            before = getattr(module, "offset", 0) or (-1 if module.padding_idx is None else int(module.padding_idx)) + 1
            return int(module.num_embeddings) - int(before)
    return None
