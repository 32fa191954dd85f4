"""The function `attribute_generation`: from a model and a prompt to the relevance for each token of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..attribution.run import composite_of, statistics_kept
from ..composite import Composite
from .answer import OUTPUT, Answer
from .continuations import generate, read_continuations
from .forced import LOGIT, QUANTITIES, Wanted
from .grids import cells_of, seen
from .likely import predictions_of
from .parts import explain_in_parts
from .passes import Ways
from .positions import check_positions
from .prompts import Prompt, read_prompts
from .reading import check_causal, inputs_of, on_sources, sources_of
from .result import GenerationAttribution
from .spans import TOKENS, read_spans


def attribute_generation(
    model: nn.Module,
    prompt: Any,
    continuation: Any = None,
    *,
    tokenizer: Any = None,
    contrast: Any = None,
    targets: Any = TOKENS,
    of: str = LOGIT,
    composite: str | Composite = "attnlrp",
    ledger: bool = False,
    traced: bool = False,
    layers: bool = False,
    chunk_size: int | None = None,
    memory: int | None = None,
    top: int = 5,
    **options: Any,
) -> GenerationAttribution:
    """Return for each token of an answer the relevance of every token before it, in the prompt and in the answer.

    One forward pass on prompt and answer together (teacher forcing), and a backward pass for many tokens at a time.
    Each row is what :func:`attribute` gives for that token, given those before it.

    Args:
        model: a causal language model, or one with an encoder and a decoder, in ``eval()`` mode.
        prompt: a text, a chat (``[{"role": "user", "content": "..."}]``, written down by the tokenizer's template),
            token ids, what a tokenizer returns (padding is taken off), or a list of texts or chats. What a processor
            returns, for one sample: images or sounds, with ids beside them or, for an encoder of sounds, without.
        continuation: the answer, as a text or ids; for several samples one each. None: the model generates it.
        tokenizer: makes tokens of texts, and names them; or a processor that has one, which knows how long sounds are.
        contrast: another answer, in the same form: what speaks for the answer rather than for this one is explained.
        targets: ``"tokens"``, ``"words"``, ``"sentences"``, ``"all"``, or a list of spans of the answer: the number of
            a token, a pair (start, stop), or a text that occurs in it. A span has the sum of its tokens.
        of: ``"logit"`` or ``"log_probability"`` of each token.
        composite: the name of a preset, or a :class:`Composite`; one whose picture is relevance.
        ledger: whether to record where relevance went that is on no token; it takes a backward pass for each row.
        traced: whether to run as one graph (:meth:`Composite.trace`), a copy of the sequence for each token.
        layers: whether to keep the relevance after each block and of each head, too; see :class:`Layers`.
        chunk_size: how many rows to run at a time; None is as many as fit. Results do not depend on it.
        memory: bytes that a chunk may take, about; None is 128 MiB on a CPU, and half of what is free on a GPU.
        top: how many of the most likely tokens to keep for each place.
        **options: of the model's ``generate``: ``max_new_tokens``, ``do_sample``, ``num_beams``, ``stop_strings``, ...

    Returns:
        The `GenerationAttribution`, an answer for each sample; on the CPU, whatever the device of the model.

    Raises:
        TypeError, ValueError: an argument is of a wrong kind, unknown, a cache, empty, not in the answer, or too long.
        AttributionError: the model failed, looks ahead, or cannot be explained with such inputs.
        NotFiniteError: the forward or the backward pass gave NaN or infinite values.
        TraceError: ``traced=True``, and the model cannot be written down as one graph.
    """
    ways = Ways(chunk_size, memory, ledger=ledger, traced=traced, layers=layers)
    words = tokenizer if hasattr(tokenizer, "convert_ids_to_tokens") else getattr(tokenizer, "tokenizer", tokenizer)
    job = _Job(model, composite_of(composite), words, tokenizer, of, ways, top)
    return GenerationAttribution(tuple(job.run(prompt, continuation, contrast, targets, options)))


@dataclass(frozen=True)
class _Job:
    """The settings of one call."""

    model: nn.Module
    composite: Composite
    tokenizer: Any
    processor: Any
    quantity: str
    ways: Ways
    top: int

    def check(self) -> None:
        """Check the settings, before any sequence.

        Raises:
            TypeError: the model is no module.
            ValueError: a setting has an unknown value, or two do not fit together.
        """
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"attribute_generation() takes a torch.nn.Module, got {type(self.model).__name__}")
        if self.quantity not in QUANTITIES:
            raise ValueError(f"of must be one of {', '.join(map(repr, QUANTITIES))}, got {self.quantity!r}")
        if self.composite.picture == "slot":
            raise ValueError(
                "the composite shows gradients (picture='slot'), which do not add up to a score; take one whose "
                "picture is relevance"
            )
        if self.ways.traced and (self.ways.ledger or self.quantity != LOGIT):
            raise ValueError("traced=True is for logits, without a ledger, which is read off a registered model")
        for name, value in (("chunk_size", self.ways.chunk), ("memory", self.ways.memory), ("top", self.top)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be None or a whole number from 1 on, got {value!r}")

    def run(
        self, prompt: Any, continuation: Any, contrast: Any, targets: Any, options: Mapping[str, Any]
    ) -> Iterator[Answer]:
        """Yield the answer of each sample."""
        self.check()
        prompts = read_prompts(self.model, prompt, self.tokenizer)
        if continuation is not None and options:
            raise TypeError(f"{', '.join(options)}: options of generate, but the continuation is given")
        with torch.inference_mode(False), torch.enable_grad(), statistics_kept(self.model):
            if continuation is None:
                prompts, answers = generate(self.model, prompts, self.tokenizer, options)
            else:
                answers = read_continuations(prompts, continuation, self.tokenizer, "continuation")
                self.check_length(prompts, answers)
            others: Sequence[Any] = [None] * len(prompts)
            if contrast is not None:
                others = read_continuations(prompts, contrast, self.tokenizer, "contrast")
                self.check_length(prompts, others)
                for number, (answer, wish) in enumerate(zip(answers, others, strict=True)):
                    if answer == wish:
                        raise ValueError(
                            f"the contrast of sample {number} is the answer itself, so their difference is 0 everywhere"
                        )
            for one, ids, against in zip(prompts, answers, others, strict=True):
                other = None if against is None else self.answer(one, against, TOKENS, None)
                yield self.answer(one, ids, targets, other)

    def check_length(self, prompts: Sequence[Prompt], answers: Sequence[tuple[int, ...]]) -> None:
        """Raise or warn if the model has no position for each token; see :func:`check_positions`."""
        for one, ids in zip(prompts, answers, strict=True):
            check_positions(self.model, one, len(ids))

    def answer(self, prompt: Prompt, ids: tuple[int, ...], targets: Any, other: Answer | None) -> Answer:
        """Explain one answer to one prompt."""
        given, before = inputs_of(self.model, prompt, ids)
        grids = seen(self.model, given, self.processor)
        sources = sources_of(prompt, ids, self.tokenizer, [grid for one in grids.values() for grid in one.grids])
        count = len(ids)
        spans = read_spans(targets, sources.pieces(OUTPUT), count)
        weights = torch.zeros(len(spans), count)
        for row, span in enumerate(spans):
            weights[row, span.start : span.stop] = 1
        wanted = Wanted(torch.arange(count) + before - 1, torch.tensor(ids), weights, self.quantity)
        cells = cells_of(grids)
        found = explain_in_parts(
            self.model,
            self.composite,
            lambda stop: inputs_of(self.model, prompt, ids[:stop])[0],
            wanted,
            self.ways,
            cells,
        )
        relevance, aside = on_sources(found.scores, grids)
        check_causal(relevance, spans, len(sources) - count, type(self.model).__name__)
        return Answer(
            sources,
            tuple(spans),
            relevance,
            weights.to(found.values) @ found.values,
            self.quantity,
            predictions_of(found.logits, torch.tensor(ids), self.top, self.tokenizer),
            found.report,
            found.ran,
            {} if found.ledger is None else {**found.ledger.absorbed, **aside},
            found.ledger,
            other,
            layers=found.layers,
        )
