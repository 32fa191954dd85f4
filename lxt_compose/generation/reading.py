"""The inputs of a model for prompt and answer, and the sources of relevance among them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attribution.inputs import Inputs, read_inputs
from ..errors import AttributionError
from ..heatmap.tokens import scheme_of
from .answer import OUTPUT, PROMPT, START, Sources
from .grids import Grid, Seen
from .prompts import Prompt, of_tokens

_READ = ("input_ids", "decoder_input_ids")


def inputs_of(model: nn.Module, prompt: Prompt, ids: tuple[int, ...]) -> tuple[Inputs, int]:
    """Return the inputs of the model for a prompt and its answer, and the position in them where the answer begins.

    Args:
        model: the model.
        prompt: the prompt.
        ids: the answer; its last token is not read.

    Raises:
        ValueError: the model takes no such images or sounds.
    """
    _check_taken(model, prompt)
    device = next(model.parameters()).device

    def tensor(tokens: tuple[int, ...]) -> Tensor:
        return torch.tensor([tokens], device=device)

    more: dict[str, Any] = {name: x.to(device) for name, x in prompt.given.items()}
    if prompt.start:
        texts = {"input_ids": tensor(prompt.ids)} if prompt.ids else {}
        before = len(prompt.start)
        texts["decoder_input_ids"] = tensor((*prompt.start, *ids[:-1]))
    else:
        before = len(prompt.ids)
        texts = {"input_ids": tensor((*prompt.ids, *ids[:-1]))}
        # inputs for each token of the prompt are extended to the answer, as text
        more = {n: F.pad(x, (0, len(ids) - 1)) if of_tokens(x, before) else x for n, x in more.items()}
        if _accepts(model, "logits_to_keep"):
            more["logits_to_keep"] = len(ids)
    if _accepts(model, "use_cache"):
        more["use_cache"] = False  # nothing is read from it
    return read_inputs(model, {**texts, **more}), before


def _check_taken(model: nn.Module, prompt: Prompt) -> None:
    """Raise if the model would ignore an image or a sound, as a keyword argument that it does not read."""
    for name, x in prompt.given.items():
        if x.is_floating_point() and _accepts(model, "input_ids") and not _accepts(model, name):
            raise ValueError(f"{type(model).__name__}.forward() takes no {name}, so the prompt cannot have it")


def _accepts(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def sources_of(prompt: Prompt, ids: tuple[int, ...], tokenizer: Any, grids: Iterable[Grid]) -> Sources:
    """Return the places of images and sounds, and the tokens of prompt, decoder start and answer."""
    every = (*prompt.ids, *prompt.start, *ids)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    names = [str(token) for token in every]
    if tokenizer is not None:
        names = [str(token) for token in tokenizer.convert_ids_to_tokens(list(every))]
    sides = (PROMPT,) * len(prompt.ids) + (START,) * len(prompt.start) + (OUTPUT,) * len(ids)
    roles = (*prompt.roles, *[""] * (len(every) - len(prompt.roles))) if prompt.roles else ()
    seen = tuple(grids)
    cells = [(name, grid.name) for grid in seen for name in grid.called()]
    return Sources(
        (-1,) * len(cells) + every,
        (*(name for name, _ in cells), *names),
        (*(side for _, side in cells), *sides),
        ("",) * len(cells) * bool(roles) + roles,
        (False,) * len(cells) + tuple(token in special for token in every),
        "words" if tokenizer is None else scheme_of(tokenizer),
        seen,
    )


def on_sources(scores: Mapping[str, Tensor], grids: Mapping[str, Seen]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return relevance [rows, sources], and [rows] by the names of inputs that are no sources.

    The last token of the answer was not read, so it has none.

    Args:
        scores: [rows, places] by the names of the inputs.
        grids: the inputs that are images and sounds.
    """
    main = [*grids, *(name for name in _READ if name in scores)]
    relevance = F.pad(torch.cat([scores[name] for name in main], 1), (0, 1))
    return relevance, {name: found.sum(1) for name, found in scores.items() if name not in main}


def check_causal(relevance: Tensor, spans: Sequence[Any], before: int, name: str) -> None:
    """Raise if a token has relevance for an earlier one.

    Raises:
        AttributionError: it has.
    """
    for row, span in zip(relevance, spans, strict=True):
        ahead = row[before + span.stop - 1 :]
        if bool((ahead != 0).any()):
            raise AttributionError(
                f"{name} looks ahead: token {span.stop - 1} of the answer depends on those from it on, so an answer "
                f"cannot be explained in one pass; explain each token with attribute(model, ids before it)"
            )
