"""Explaining many numbers of one sequence: many cotangents at a time, or copies of the sequence through one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attribution import attribute
from ..attribution.inputs import Inputs
from ..attribution.logits import logits_of
from ..composite import Composite
from .forced import Forced, Found, Wanted
from .inside import Inside, length_of


@dataclass(frozen=True)
class Ways:
    """Settings of a run: rows at a time, their bytes, with a ledger, as one graph, with relevance inside the model."""

    chunk: int | None = None
    memory: int | None = None
    ledger: bool = False
    traced: bool = False
    layers: bool = False


def explain(
    model: nn.Module,
    composite: Composite,
    given: Inputs,
    wanted: Wanted,
    ways: Ways,
    cells: Mapping[str, Callable[[Tensor], Tensor]],
) -> Found:
    """Return the relevance of each token and place of one sequence for the wanted numbers.

    Args:
        model: the model.
        composite: the composite.
        given: ``input_ids`` [1, tokens], for a model with an encoder ``decoder_input_ids`` too; images, sounds.
        wanted: which numbers of the output.
        ways: the settings.
        cells: what makes the relevance of places of that of an image or a sound, by its name.

    Raises:
        ValueError: images or sounds cannot be explained in one graph.
    """
    if ways.traced:
        if ways.layers:
            raise ValueError("traced=True is for the relevance of inputs; layers=True runs registered")
        if cells:
            raise ValueError(f"traced=True is for texts: {', '.join(cells)} cannot be copied for each token")
        return _through_one_graph(model, composite, given, wanted, ways.chunk)
    inside = Inside(model, length_of(given.ids)) if ways.layers else None
    return Forced(model, composite, given, wanted, cells, inside).find(ways.chunk, ways.memory, ledger=ways.ledger)


_COPIES = 16
"""The default number of copies of a sequence that run at a time."""


def _through_one_graph(
    model: nn.Module, composite: Composite, given: Inputs, wanted: Wanted, chunk: int | None
) -> Found:
    """Return the same from one graph: a copy of the sequence for each number, with a mask behind its place.

    Rows are sums of those of single numbers, as relevance is linear in what it starts with.
    """
    inputs = given.ids
    main = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    mask = "decoder_attention_mask" if main.startswith("decoder") else "attention_mask"
    length, count = inputs[main].shape[1], len(wanted.tokens)
    seen = (torch.arange(length) <= wanted.positions[:, None]).long().to(inputs[main].device)
    copies = {name: x.expand(count, -1).contiguous() for name, x in inputs.items()} | {mask: seen}
    more = {name: value for name, value in given.kwargs.items() if name == "use_cache"}
    result = attribute(
        model, {**copies, **more}, target=wanted.tokens, composite=composite, batch_size=chunk or _COPIES, traced=True
    )
    scores = result.scores if isinstance(result.scores, dict) else {main: result.scores}
    with torch.no_grad():
        logits = logits_of(model(**inputs, **more))[0, wanted.positions].float().cpu()
    return Found(
        {name: wanted.weights.to(rows) @ rows for name, rows in scores.items()},
        result.output,
        logits,
        result.report,
        None,
        f"{result.ran}, a copy of the sequence for each token",
    )
