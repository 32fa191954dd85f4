"""Spans of an answer: tokens, words, sentences, or spans found in the tokens or in the text."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..heatmap.tokens import Piece, words_of

TOKENS, WORDS, SENTENCES, ALL = "tokens", "words", "sentences", "all"
KINDS = (TOKENS, WORDS, SENTENCES, ALL)
_ENDS = frozenset(".!?。！？؟।…")
_HELP = (
    f"targets is one of {', '.join(map(repr, KINDS))}, or a list of spans: the number of a token, a pair "
    f"(start, stop), or a text that occurs in the answer"
)


@dataclass(frozen=True)
class Span:
    """Tokens ``start`` to ``stop`` (not included) of an answer, and their name."""

    start: int
    stop: int
    name: str

    def __len__(self) -> int:
        return self.stop - self.start


def written(pieces: Sequence[Piece]) -> str:
    """Return the text that pieces make, with its spaces and line breaks."""
    return "".join("\n" * p.lines + " " * (p.space and not p.lines) + p.text for p in pieces).strip(" ")


def read_spans(targets: Any, pieces: Sequence[Piece], count: int) -> list[Span]:
    """Return the spans that are to be explained.

    Args:
        targets: a kind of spans, or a list of them.
        pieces: the pieces of text of the answer.
        count: its number of tokens.

    Raises:
        TypeError: a span is of a wrong kind.
        ValueError: there is no such span, or it is empty.
    """
    if isinstance(targets, str) and targets in KINDS:
        return {TOKENS: tokens, WORDS: words, SENTENCES: sentences, ALL: whole}[targets](pieces, count)
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not targets:
        raise TypeError(f"{_HELP}; got {targets!r}")
    return [_span(target, pieces, count) for target in targets]


def tokens(pieces: Sequence[Piece], count: int) -> list[Span]:
    """Return a span for each token."""
    names = {number: piece.label for piece in pieces for number in piece.tokens}
    return [Span(place, place + 1, names.get(place, str(place))) for place in range(count)]


def words(pieces: Sequence[Piece], count: int) -> list[Span]:
    """Return a span for each word."""
    return [Span(min(word.tokens), max(word.tokens) + 1, word.label) for word in words_of(pieces)]


def sentences(pieces: Sequence[Piece], count: int) -> list[Span]:
    """Return a span for each sentence: up to a mark that ends one, a line break, or a special token."""
    groups: list[list[Piece]] = [[]]
    for piece in pieces:
        if groups[-1] and (piece.lines or piece.special or groups[-1][-1].special or _ends(groups[-1][-1], piece)):
            groups.append([])
        groups[-1].append(piece)
    return [Span(group[0].tokens[0], group[-1].tokens[-1] + 1, written(group)) for group in groups if group]


def _ends(last: Piece, after: Piece) -> bool:
    """Return whether a sentence ends between two pieces: not in 3.14, nor within an ellipsis."""
    mark = last.text[-1:]
    spaced = after.space or after.blank or (after.text[:1] not in _ENDS and not mark.isascii())
    return mark in _ENDS and spaced


def whole(pieces: Sequence[Piece], count: int) -> list[Span]:
    """Return one span for all of the answer."""
    return [Span(0, count, "the whole answer")]


def _span(target: Any, pieces: Sequence[Piece], count: int) -> Span:
    if isinstance(target, str):
        return _of_text(target, pieces)
    if isinstance(target, (tuple, list)) and len(target) == 2:
        start, stop = (_whole_number(value) for value in target)
    elif isinstance(target, slice):
        start, stop, step = target.indices(count)
        if step != 1:
            raise ValueError(f"a span has no gaps, got {target!r}")
    else:
        start = _whole_number(target)
        stop = start + 1 if start != -1 else count
    start, stop = (value + count if value < 0 else value for value in (start, stop))
    if not 0 <= start < stop <= count:
        raise ValueError(f"the span {target!r} is not within the answer, which has {count} tokens, or is empty")
    inside = [piece for piece in pieces if set(piece.tokens) & set(range(start, stop))]
    return Span(start, stop, written(inside))


def _whole_number(value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{value!r} is no span; {_HELP}") from None


def _of_text(text: str, pieces: Sequence[Piece]) -> Span:
    """Return the tokens of the first occurrence of a text in the answer."""
    places: list[Piece] = []
    whole = ""
    for piece in pieces:
        part = "\n" * piece.lines + " " * (piece.space and not piece.lines) + piece.text
        whole += part
        places += [piece] * len(part)
    at = whole.find(text.strip()) if text.strip() else -1
    if at < 0:
        raise ValueError(f"{text!r} does not stand in the answer {whole.strip()!r}")
    inside = places[at : at + len(text.strip())]
    return Span(inside[0].tokens[0], inside[-1].tokens[-1] + 1, text.strip())
