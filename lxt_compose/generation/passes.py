"""The ways to explain many numbers of one sequence: many cotangents at a time, or copies of it through one graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution import attribute
from ..attribution.inputs import read_inputs
from ..attribution.logits import logits_of
from ..composite import Composite
from .forced import Forced, Found, Wanted


@dataclass(frozen=True)
class Ways:
    """How to run: rows at a time, bytes for them, whether with a ledger, whether as one graph."""

    chunk: int | None = None
    memory: int | None = None
    ledger: bool = False
    traced: bool = False


def explain(model: nn.Module, composite: Composite, inputs: Mapping[str, Tensor], wanted: Wanted, ways: Ways) -> Found:
    """Return the relevance of each token of one sequence for the numbers that are wanted.

    Args:
        model: the model.
        composite: the composite.
        inputs: ``input_ids`` [1, tokens], for a model with an encoder ``decoder_input_ids`` too.
        wanted: which numbers of the output.
        ways: how to run.
    """
    if ways.traced:
        return _through_one_graph(model, composite, inputs, wanted, ways.chunk)
    more: dict[str, Any] = {}
    if _accepts(model, "use_cache"):
        more["use_cache"] = False  # nothing is read from it
    if _accepts(model, "logits_to_keep") and "decoder_input_ids" not in inputs:
        more["logits_to_keep"] = inputs["input_ids"].shape[1] - int(wanted.positions.min())
    given = read_inputs(model, {**inputs, **more})
    return Forced(model, composite, given, wanted).find(ways.chunk, ways.memory, ledger=ways.ledger)


def _accepts(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


_COPIES = 16
"""How many copies of a sequence run at a time, if nothing else is asked for."""


def _through_one_graph(
    model: nn.Module, composite: Composite, inputs: Mapping[str, Tensor], wanted: Wanted, chunk: int | None
) -> Found:
    """Return the same from one graph: a copy of the sequence for each number, with a mask behind its place.

    Rows are sums of those of single numbers, as relevance is linear in what it starts with.
    """
    main = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    mask = "decoder_attention_mask" if main.startswith("decoder") else "attention_mask"
    length, count = inputs[main].shape[1], len(wanted.tokens)
    seen = (torch.arange(length) <= wanted.positions[:, None]).long().to(inputs[main].device)
    copies = {name: x.expand(count, -1).contiguous() for name, x in inputs.items()} | {mask: seen}
    more = {"use_cache": False} if _accepts(model, "use_cache") else {}
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
