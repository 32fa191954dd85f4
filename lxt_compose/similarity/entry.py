"""The function `attribute_similarity`: from two inputs and a model that embeds to relevance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution import attribute
from ..attribution.inputs import Inputs, read_inputs
from ..attribution.run import composite_of, statistics_kept
from ..composite import Composite
from ..generation.grids import Seen, cells_of, seen
from ..heatmap.tokens import scheme_of
from .pair import COSINE, MEASURES, Pair, Pooling, pooling_of
from .result import SimilarityAttribution
from .second_order import Pairs, of_features, pairs_of, placed


def attribute_similarity(
    model: nn.Module,
    first: Any,
    second: Any,
    *,
    tokenizer: Any = None,
    pooling: str | Pooling = "mean",
    measure: str = COSINE,
    pairs: bool = False,
    composite: str | Composite = "attnlrp",
    ledger: bool = False,
    chunk_size: int | None = None,
    memory: int | None = None,
) -> SimilarityAttribution:
    """Return what in two inputs makes them similar to a model that embeds them.

    The model runs on both, and the similarity of the two embeddings is explained as one output, by the places of both.
    With ``pairs`` also by pairs of places, one of each input: which word goes together with which.

    Args:
        model: makes embeddings, in ``eval()`` mode.
        first: a text, or keyword arguments of the model for one sample, such as what a tokenizer or a processor
            returns.
        second: the other input, in the same way.
        tokenizer: makes tokens of texts, and names them.
        pooling: how the output becomes one vector: the ``"mean"`` of the last hidden states of real tokens, those of
            the ``"first"`` or the ``"last"`` token, the model's own ``"embedding"``, or a function of the output and
            the keyword arguments that returns [1, features].
        measure: ``"cosine"`` or ``"dot"``.
        pairs: whether to explain pairs of places too; see :func:`pairs_of`. It takes a backward pass for each feature
            of the embedding, many at a time.
        composite: the name of a preset, or a :class:`Composite`; one whose picture is relevance.
        ledger: whether to record where relevance went that is on no place.
        chunk_size: how many features to run at a time; None is as many as fit.
        memory: bytes that they may take, about; see :func:`attribute_generation`.

    Raises:
        TypeError: an input is of a wrong kind, or a text has no tokenizer; the output has no such embedding.
        ValueError: an argument has an unknown value, or there are several samples.
        AttributionError: the model failed, or cannot be explained with such inputs.
    """
    rules = composite_of(composite)
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(map(repr, MEASURES))}, got {measure!r}")
    if rules.picture == "slot":
        raise ValueError("the composite shows gradients (picture='slot'), which do not add up to a similarity")
    given = [_inputs(model, one, tokenizer, name) for one, name in ((first, "first"), (second, "second"))]
    pair = Pair(model, pooling_of(pooling), measure)
    return _explained(pair, rules, given, tokenizer, (chunk_size, memory) if pairs else None, ledger=ledger)


def _explained(
    pair: Pair,
    rules: Composite,
    given: list[Inputs],
    tokenizer: Any,
    ways: tuple[int | None, int | None] | None,
    *,
    ledger: bool,
) -> SimilarityAttribution:
    """Explain the similarity, and pairs of places if they are wanted, with these rows at a time and bytes."""
    grids = [seen(pair.model, one, tokenizer) for one in given]
    both = {"first": given[0].kwargs, "second": given[1].kwargs}
    found = attribute(pair, both, composite=rules, ledger=ledger)
    scores = [
        _on_places(found.relevances, one, cells, side)
        for one, cells, side in zip(given, grids, ("first.", "second."), strict=True)
    ]
    return SimilarityAttribution(
        (_names(given[0], tokenizer, grids[0]), _names(given[1], tokenizer, grids[1])),
        (scores[0], scores[1]),
        float(found.output[0]),
        found.report,
        found.ledger,
        None if ways is None else _pairs(pair, rules, given, grids, *ways),
        "words" if tokenizer is None else scheme_of(tokenizer),
    )


def _inputs(model: nn.Module, value: Any, tokenizer: Any, name: str) -> Inputs:
    if isinstance(value, str):
        if tokenizer is None:
            raise TypeError(f"{name} is a text, which needs a tokenizer: pass tokenizer=")
        value = tokenizer(value, return_tensors="pt")
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a text or a mapping of keyword arguments, got {type(value).__name__}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    moved = {key: x.to(device) if isinstance(x, Tensor) else x for key, x in value.items()}
    given = read_inputs(model, moved)
    if given.count != 1:
        raise ValueError(f"{name} has {given.count} samples; attribute_similarity() explains one pair at a time")
    return given


def _pairs(
    pair: Pair,
    rules: Composite,
    given: list[Inputs],
    grids: list[dict[str, Seen]],
    chunk: int | None,
    budget: int | None,
) -> Pairs:
    with torch.inference_mode(False), torch.enable_grad(), statistics_kept(pair.model):
        a, b = (
            of_features(pair.model, rules, one, cells_of(cells), pair.pooling, chunk, budget)
            for one, cells in zip(given, grids, strict=True)
        )
    norms = float(a.values.double().norm() * b.values.double().norm()) if pair.measure == COSINE else 1.0
    return pairs_of(a, b, 1 / norms)


def _on_places(relevances: Mapping[str, Tensor], given: Inputs, grids: Mapping[str, Seen], side: str) -> Tensor:
    """Return the relevance of all places of one input."""
    cells: dict[str, Callable[[Tensor], Tensor]] = cells_of(grids)
    found = []
    for name in placed(given):
        relevance = relevances[side + name]
        if name in cells:
            found.append(cells[name](relevance))
        else:
            found.append((relevance if relevance.dim() == len(given.dims[name]) else relevance.sum(-1)).flatten())
    return torch.cat(found)


def _names(given: Inputs, tokenizer: Any, grids: Mapping[str, Seen]) -> tuple[str, ...]:
    names = [name for one in grids.values() for grid in one.grids for name in grid.called()]
    for ids in given.ids.values():
        read = ids.flatten().tolist()
        names += map(str, read if tokenizer is None else tokenizer.convert_ids_to_tokens(read))
    return tuple(names)
