"""The function `attribute_outputs`: from a model that answers at many places to the relevance for each answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.inputs import Inputs, read_inputs
from ..attribution.run import composite_of, statistics_kept
from ..composite import Composite
from ..heatmap.tokens import scheme_of
from .answer import OUTPUT, PROMPT, Answer, Predictions, Sources
from .forced import LOGIT, Forced, Found
from .grids import Seen, cells_of, seen
from .heads import Answers, answers_of
from .reading import on_sources
from .result import GenerationAttribution
from .spans import Span


def attribute_outputs(
    model: nn.Module,
    inputs: Any,
    *,
    processor: Any = None,
    threshold: float = 0.5,
    composite: str | Composite = "attnlrp",
    ledger: bool = False,
    chunk_size: int | None = None,
    memory: int | None = None,
    top: int = 5,
) -> GenerationAttribution:
    """Return the relevance of the input for each answer of a head that answers at many places, from one forward pass.

    A row is one detected thing (its class, with its box), the label of one token, a symbol that CTC emits or a run of
    frames with one label (the sum over its frames), a segment (the mean over its pixels), or start and end of the
    answer to a question. Each is what :func:`attribute` gives for that target, and they are shown on the same page as
    the tokens of a text that a model writes.

    Args:
        model: the model, in ``eval()`` mode.
        inputs: what :func:`attribute` takes, of one sample.
        processor: a tokenizer or a processor of transformers, which names tokens and symbols, and gives the rate of
            sounds.
        threshold: how likely a detected thing must be.
        composite: the name of a preset, or a :class:`Composite`; one whose picture is relevance.
        ledger: whether to record where relevance went that is on no place; it takes a backward pass for each row.
        chunk_size: how many rows to run at a time; None is as many as fit. Results do not depend on it.
        memory: bytes that a chunk may take, about; see :func:`attribute_generation`.
        top: how many of the most likely classes to keep for each answer.

    Raises:
        TypeError: the model has one answer for each sample.
        ValueError: there are several samples, or no answers.
        AttributionError: the model failed, or cannot be explained with such inputs.
        NotFiniteError: the forward or the backward pass gave NaN or infinite values.
    """
    rules, tokenizer = composite_of(composite), _tokenizer_of(processor)
    if rules.picture == "slot":
        raise ValueError("the composite shows gradients (picture='slot'), which do not add up to a score")
    with torch.inference_mode(False), torch.enable_grad(), statistics_kept(model):
        given = read_inputs(model, inputs)
        if given.count != 1:
            raise ValueError(f"attribute_outputs() explains one sample, got {given.count}; take them one by one")
        with torch.no_grad():
            batch = given.copied()
            output = model(*batch.args, **batch.kwargs)
        answers = answers_of(model, output, given, tokenizer, threshold)
        grids = seen(model, given, processor)
        forced = Forced(model, rules, given, answers.wanted, cells_of(grids))
        found = forced.find(chunk_size, memory, ledger=ledger)
    return GenerationAttribution((_answer(answers, found, given, tokenizer, grids, top),))


def _answer(answers: Answers, found: Found, given: Inputs, tokenizer: Any, grids: dict[str, Seen], top: int) -> Answer:
    """Return the results as an answer, each part of which is one of the head's."""
    names = answers.rows
    relevance, aside = on_sources(found.scores, grids)
    weights = answers.wanted.weights.to(found.values)
    return Answer(
        _sources(given, names, tokenizer, grids, letters=answers.letters),
        tuple(Span(row, row + 1, name) for row, name in enumerate(names)),
        torch.cat([relevance[:, :-1], relevance.new_zeros(len(names), len(names))], 1),
        weights @ found.values,
        LOGIT,
        _predictions(answers, found.logits, top),
        found.report,
        found.ran,
        {} if found.ledger is None else {**found.ledger.absorbed, **aside},
        found.ledger,
        boxes=answers.boxes,
    )


def _tokenizer_of(processor: Any) -> Any:
    return processor if hasattr(processor, "convert_ids_to_tokens") else getattr(processor, "tokenizer", None)


def _sources(given: Inputs, names: list[str], tokenizer: Any, grids: dict[str, Seen], *, letters: bool) -> Sources:
    """Return the places of images and sounds, the tokens that were read, and the answers."""
    seen = tuple(grid for one in grids.values() for grid in one.grids)
    cells = [(name, grid.name) for grid in seen for name in grid.called()]
    read: list[int] = given.ids["input_ids"].flatten().tolist() if "input_ids" in given.ids else []
    special = set(getattr(tokenizer, "all_special_ids", ()))
    tokens = [str(token) for token in read] if tokenizer is None else tokenizer.convert_ids_to_tokens(read)
    scheme = "sentencepiece" if letters else "words" if tokenizer is None or not read else scheme_of(tokenizer)
    return Sources(
        (-1,) * len(cells) + tuple(read) + (-1,) * len(names),
        (*(name for name, _ in cells), *map(str, tokens), *names),
        (*(side for _, side in cells), *(PROMPT,) * len(read), *(OUTPUT,) * len(names)),
        (),
        (False,) * len(cells) + tuple(token in special for token in read) + (False,) * len(names),
        scheme,
        seen,
    )


def _predictions(answers: Answers, logits: Tensor, top: int) -> Predictions:
    """Return the predictions for each answer; of several frames those of the most certain one."""
    weights = answers.wanted.weights
    tokens = answers.wanted.tokens
    shares = logits.double().softmax(-1)
    own = shares.gather(1, tokens[:, None])[:, 0]
    at = (weights * (1 + own)).argmax(1)
    best = shares[at].topk(min(top, shares.shape[1]))
    mine = logits[at, tokens[at]]
    return Predictions(
        mine,
        own[at],
        (logits[at] > mine[:, None]).sum(1),
        best.indices,
        best.values,
        tuple(tuple(answers.names(number) for number in row) for row in best.indices.tolist()),
        tuple(answers.rows),
    )
