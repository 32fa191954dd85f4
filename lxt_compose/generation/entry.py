"""From a model and a prompt to the reasons for each token of its answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.run import composite_of, statistics_kept
from ..composite import Composite
from ..errors import AttributionError
from ..heatmap.tokens import bytes_of, scheme_of
from .answer import OUTPUT, PROMPT, START, Answer, Predictions, Sources
from .continuations import generate, read_continuations
from .forced import LOGIT, QUANTITIES, Found, Wanted
from .passes import Ways, explain
from .prompts import Prompt, read_prompts
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
            token ids, what a tokenizer returns (padding is taken off), or a list of texts or chats.
        continuation: the answer, as a text or ids; for several samples one each. None: the model generates it.
        tokenizer: makes tokens of texts, and names them.
        contrast: another answer, in the same way: what speaks for this one rather than for that is explained.
        targets: ``"tokens"``, ``"words"``, ``"sentences"``, ``"all"``, or a list of spans of the answer: the number of
            a token, a pair (start, stop), or a text that occurs in it. A span has the sum of its tokens.
        of: ``"logit"`` or ``"log_probability"`` of each token.
        composite: the name of a preset, or a :class:`Composite`; one whose picture is relevance.
        ledger: whether to name where relevance went that is on no token; it takes a backward pass for each row.
        traced: whether to run as one graph (:meth:`Composite.trace`), a copy of the sequence for each token.
        chunk_size: how many rows to run at a time; None is as many as fit. Results do not depend on it.
        memory: bytes that a chunk may take, about; None is 128 MiB on a CPU, and half of what is free on a GPU.
        top: how many of the most likely tokens to keep for each place.
        **options: of the model's ``generate``: ``max_new_tokens``, ``do_sample``, ``num_beams``, ``stop_strings``, ...

    Returns:
        The :class:`GenerationAttribution`, an answer for each sample; on the CPU, whatever the device of the model.

    Raises:
        TypeError, ValueError: an argument is of a wrong kind, a cache, empty, or not in the answer.
        AttributionError: the model failed, looks ahead, or cannot be explained with such inputs.
        NotFiniteError: the forward or the backward pass gave NaN or infinite values.
        TraceError: ``traced=True``, and the model cannot be written down as one graph.
    """
    ways = Ways(chunk_size, memory, ledger=ledger, traced=traced)
    job = _Job(model, composite_of(composite), tokenizer, of, ways, top)
    return GenerationAttribution(tuple(job.run(prompt, continuation, contrast, targets, options)))


@dataclass(frozen=True)
class _Job:
    """The settings of one call."""

    model: nn.Module
    composite: Composite
    tokenizer: Any
    quantity: str
    ways: Ways
    top: int

    def check(self) -> None:
        """Check what no sequence is needed for.

        Raises:
            TypeError: the model is no module.
            ValueError: a setting is not one of those there are, or two do not go together.
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
            others: Sequence[Any] = [None] * len(prompts)
            if contrast is not None:
                others = read_continuations(prompts, contrast, self.tokenizer, "contrast")
            for one, ids, against in zip(prompts, answers, others, strict=True):
                other = None if against is None else self.answer(one, against, TOKENS, None)
                yield self.answer(one, ids, targets, other)

    def answer(self, prompt: Prompt, ids: tuple[int, ...], targets: Any, other: Answer | None) -> Answer:
        """Explain one answer to one prompt."""
        sources = _sources(prompt, ids, self.tokenizer)
        count = len(ids)
        spans = read_spans(targets, sources.pieces(OUTPUT), count)
        weights = torch.zeros(len(spans), count)
        for row, span in enumerate(spans):
            weights[row, span.start : span.stop] = 1
        inputs, before = _inputs(self.model, prompt, ids)
        wanted = Wanted(torch.arange(count) + before - 1, torch.tensor(ids), weights, self.quantity)
        found = explain(self.model, self.composite, inputs, wanted, self.ways)
        relevance = _on_tokens(found, prompt, count)
        _check_causal(relevance, spans, len(sources) - count, type(self.model).__name__)
        return Answer(
            sources,
            tuple(spans),
            relevance,
            weights.to(found.values) @ found.values,
            self.quantity,
            _predictions(found.logits, torch.tensor(ids), self.top, self.tokenizer),
            found.report,
            found.ran,
            {} if found.ledger is None else found.ledger.absorbed,
            found.ledger,
            other,
        )


def _inputs(model: nn.Module, prompt: Prompt, ids: tuple[int, ...]) -> tuple[dict[str, Tensor], int]:
    """Return what the model is given, and how many tokens come before the answer in what it reads."""
    device = next(model.parameters()).device

    def tensor(tokens: tuple[int, ...]) -> Tensor:
        return torch.tensor([tokens], device=device)

    if prompt.start:
        read = (*prompt.start, *ids[:-1])
        return {"input_ids": tensor(prompt.ids), "decoder_input_ids": tensor(read)}, len(prompt.start)
    return {"input_ids": tensor((*prompt.ids, *ids[:-1]))}, len(prompt.ids)


def _sources(prompt: Prompt, ids: tuple[int, ...], tokenizer: Any) -> Sources:
    """Return the tokens of prompt, decoder start and answer."""
    every = (*prompt.ids, *prompt.start, *ids)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    names = [str(token) for token in every]
    if tokenizer is not None:
        names = [str(token) for token in tokenizer.convert_ids_to_tokens(list(every))]
    sides = (PROMPT,) * len(prompt.ids) + (START,) * len(prompt.start) + (OUTPUT,) * len(ids)
    roles = (*prompt.roles, *[""] * (len(every) - len(prompt.roles))) if prompt.roles else ()
    scheme = "words" if tokenizer is None else scheme_of(tokenizer)
    return Sources(every, tuple(names), sides, roles, tuple(token in special for token in every), scheme)


def _on_tokens(found: Found, prompt: Prompt, count: int) -> Tensor:
    """Return relevance [rows, tokens of prompt, start and answer]; the last token was not read, so it has none."""
    parts = [found.scores["input_ids"]]
    if prompt.start:
        parts.append(found.scores["decoder_input_ids"])
    relevance = torch.cat(parts, 1)
    return torch.nn.functional.pad(relevance, (0, 1))


def _check_causal(relevance: Tensor, spans: Sequence[Any], before: int, name: str) -> None:
    """Raise if a token has relevance for one that comes before it.

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


def _predictions(logits: Tensor, ids: Tensor, top: int, tokenizer: Any) -> Predictions:
    """Return what the model held likely, from logits [T, classes]."""
    shares = logits.double().softmax(-1)
    best = shares.topk(min(top, shares.shape[1]))
    own = logits.gather(1, ids[:, None])
    named = {token: _named(token, tokenizer) for token in {*ids.tolist(), *best.indices.flatten().tolist()}}
    return Predictions(
        own[:, 0],
        shares.gather(1, ids[:, None])[:, 0],
        (logits > own).sum(1),
        best.indices,
        best.values,
        tuple(tuple(named[token] for token in row) for row in best.indices.tolist()),
        tuple(named[token] for token in ids.tolist()),
    )


def _named(token: int, tokenizer: Any) -> str:
    """Return what a token adds to a text, or its bytes where they are but a part of a character."""
    if tokenizer is None:
        return str(token)
    text = str(tokenizer.decode([token]))
    if text and "\ufffd" not in text:
        return text
    name = str(tokenizer.convert_ids_to_tokens([token])[0])
    return "".join(f"<0x{byte:02X}>" for byte in bytes_of(name, scheme_of(tokenizer) or "bytes")) or name
