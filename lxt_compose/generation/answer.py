"""The data of one explained answer: relevance of its sources for each of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..coverage.report import CoverageReport
from ..heatmap.tokens import Piece, pieces_of
from ..ledger import Ledger
from .grids import Grid
from .handing_on import POSITIVE, SHARES, hand_on
from .inside import Layers
from .prompts import TEMPLATE
from .spans import Span, written

PROMPT, START, OUTPUT = "prompt", "start", "output"
REST, UNACCOUNTED = "biases and the like", "unaccounted"
"""The part of a score on no token: biases, absorption by softmax and stabilizers, constants such as position tables.

A ledger names these by kind; what is then left over is unaccounted: 0 to rounding, or an operation was not seen.
"""


@dataclass(frozen=True)
class Sources:
    """The sources of relevance, in order: places of images and sounds, prompt, decoder start, answer.

    Places of ``grids`` come first, row by row, under their names; their ids are -1. ``tokens`` are as the tokenizer
    names them, ``labels`` their texts. ``roles`` are those of a chat, empty without one; ``special`` tells tokens that
    stand for no text.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    sides: tuple[str, ...]
    roles: tuple[str, ...]
    special: tuple[bool, ...]
    scheme: str | None = None
    grids: tuple[Grid, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, side: str) -> range:
        """Return which sources are on a side: "prompt", "start" or "output", or the name of an image or a sound."""
        first = self.sides.index(side) if side in self.sides else 0
        return range(first, first + self.sides.count(side))

    def groups(self) -> dict[str, Tensor]:
        """Return which tokens belong together in sums, by name: [tokens], true or false.

        Each image and sound, the words of the prompt (of a chat by role), special tokens and the template, the
        decoder's start, the answer.
        """
        names = []
        for side, role, special in zip(self.sides, self.roles or [""] * len(self), self.special, strict=True):
            extra = side == PROMPT and (special or role == TEMPLATE)
            names.append("special tokens" if extra else role if side == PROMPT and role else side)
        return {name: torch.tensor([each == name for each in names]) for name in dict.fromkeys(names)}

    def pieces(self, side: str) -> list[Piece]:
        """Return the pieces of text of one side; its tokens count from 0."""
        places = self.places(side)
        tokens = [self.tokens[place] for place in places]
        special = [self.tokens[place] for place in places if self.special[place]]
        return pieces_of(tokens, scheme=self.scheme, special=special)

    @cached_property
    def parts(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The text of each piece and the sources that it stands for, several if only together they are a character."""
        found = []
        for side in dict.fromkeys(self.sides):
            first = self.places(side).start
            found += [(piece.label, tuple(first + token for token in piece.tokens)) for piece in self.pieces(side)]
        return tuple(found)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The text of each source: that of the piece it belongs to."""
        found = list(self.tokens)
        for label, places in self.parts:
            for place in places:
                found[place] = label
        return tuple(found)


@dataclass(frozen=True)
class Predictions:
    """The model's predictions at each place of an answer of T tokens.

    ``logits``, ``probabilities`` and ``ranks`` (0 is the first) [T] are those of the answer's token, named in
    ``tokens``; ``top_ids`` and ``top_probabilities`` [T, k] those of the most likely ones, named in ``top_tokens``.
    """

    logits: Tensor
    probabilities: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_probabilities: Tensor
    top_tokens: tuple[tuple[str, ...], ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Contrast:
    """What speaks for an answer rather than another, each explained after the same prompt.

    ``before`` is the difference on prompt and decoder start, [tokens]; ``own`` [T] what is on the answer's own tokens,
    ``its`` what is on those of the other, with its sign turned. With ``rest`` they add up to ``score``.
    """

    before: Tensor
    own: Tensor
    its: Tensor
    rest: float
    score: float


@dataclass(frozen=True, eq=False)
class Answer:
    """One sequence: relevance [rows, tokens] of each token for each span, in the unit of ``scores`` [rows].

    ``quantity`` is what is explained: the logit or the log-probability of each token of a span, added up. The part of a
    score on no token is its rest; with a ledger, ``absorbed`` gives it by kind, [rows] each. ``other`` is the answer
    that it is contrasted with. ``ran`` says how the passes ran. ``through`` [rows, T] is the relevance that each token
    of the answer has handed on (see :meth:`handed_on`); None if none was. ``boxes`` [T, 4] are the boxes of detected
    things, left, top, right and bottom, as shares of the image; None but for detectors. ``layers`` is relevance inside
    the model, if asked for.
    """

    sources: Sources
    spans: tuple[Span, ...]
    relevance: Tensor
    scores: Tensor
    quantity: str
    predictions: Predictions
    report: CoverageReport
    ran: str
    absorbed: Mapping[str, Tensor] = field(default_factory=dict)
    ledger: Ledger | None = None
    other: Answer | None = None
    through: Tensor | None = None
    boxes: Tensor | None = None
    layers: Layers | None = None

    @property
    def length(self) -> int:
        """The number of tokens of the answer."""
        return len(self.sources.places(OUTPUT))

    @cached_property
    def text(self) -> str:
        """The text of the answer."""
        return written(self.sources.pieces(OUTPUT))

    def maps(self) -> dict[str, Tensor]:
        """Return the relevance of images and sounds by their names, [rows, height, width] in places."""
        return {
            grid.name: self.relevance[:, list(self.sources.places(grid.name))].unflatten(1, (grid.rows, grid.columns))
            for grid in self.sources.grids
        }

    def sums(self) -> dict[str, Tensor]:
        """Return the parts of each score, [rows] by name: groups of tokens, and the rest; they add up to the scores.

        With a ledger the rest is split by kind.
        """
        found = {name: self.relevance[:, place].sum(1) for name, place in self.sources.groups().items()}
        return {**found, **self._rest()}

    def _rest(self) -> dict[str, Tensor]:
        """Return the part of each score on no token, by kind."""
        rest = self.scores - self.relevance.sum(1)
        found = {kind: amount.to(rest) for kind, amount in self.absorbed.items()}
        for amount in found.values():
            rest = rest - amount
        return {**found, UNACCOUNTED if found else REST: rest}

    def complete(self) -> bool:
        """Return whether every token of the answer has a row of its own, in order."""
        return [(span.start, span.stop) for span in self.spans] == [(n, n + 1) for n in range(self.length)]

    def covers(self) -> bool:
        """Return whether each token of the answer is in exactly one span, so that all rows make up the answer."""
        return sorted(place for span in self.spans for place in range(span.start, span.stop)) == list(
            range(self.length)
        )

    def contrast(self) -> Contrast:
        """Return what speaks for the whole answer rather than for the other one.

        Raises:
            ValueError: there is no other, or the spans leave tokens out or overlap.
        """
        if self.other is None:
            raise ValueError("there is no other answer: attribute_generation(..., contrast=)")
        if not (self.covers() and self.other.covers()):
            raise ValueError("the spans leave tokens out or overlap, so they do not add up to the whole answer")
        split = len(self.sources) - self.length
        own, its = self.relevance.sum(0), self.other.relevance.sum(0).to(self.relevance)
        before, score = own[:split] - its[:split], float(self.scores.sum() - self.other.scores.sum())
        rest = score - float(before.sum() + own[split:].sum() - its[split:].sum())
        return Contrast(before, own[split:], -its[split:], rest, score)

    def row(self, start: int, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """Return relevance [tokens] and score of a span, added up from its tokens.

        Args:
            start: the number of its first token.
            stop: the number after its last one; by default it is one token.

        Raises:
            ValueError: the tokens were not explained one by one, or the span is not within the answer.
        """
        stop = start + 1 if stop is None else stop
        if not self.complete():
            raise ValueError("only spans were explained; leave targets= out to explain each token, and add them up")
        if not 0 <= start < stop <= self.length:
            raise ValueError(f"the span {start} to {stop} is not within the answer, which has {self.length} tokens")
        return self.relevance[start:stop].sum(0), self.scores[start:stop].sum()

    def handed_on(self, hops: int | None = None, *, shares: str = POSITIVE) -> Answer:
        """Return the answer with the relevance of its own tokens handed on to their sources, down to the prompt.

        For answers in several steps, this shows the sources of a step, and not only that a later step read it. Scores
        and their sums stay the same; see :func:`hand_on` for the equations.

        Args:
            hops: how many times relevance is handed on; None: until none is left on the answer.
            shares: ``"positive"``: to sources that speak for a token; bounded. ``"signed"``: to all, as the linear
                rules would; not bounded where a score is small beside its parts, and ``ran`` says by how much it grew.

        Raises:
            TypeError: hops is no whole number.
            ValueError: the tokens were not explained one by one, or an argument has an unknown value.
        """
        if not self.complete():
            raise ValueError("only spans were explained; leave targets= out, and take the spans with row()")
        if shares not in SHARES:
            raise ValueError(f"shares must be one of {', '.join(map(repr, SHARES))}, got {shares!r}")
        if hops is not None and (isinstance(hops, bool) or not isinstance(hops, int)):
            raise TypeError(f"hops must be None or a whole number, got {hops!r}")
        if hops is not None and hops < 0:
            raise ValueError(f"hops must be None or a whole number from 0 on, got {hops}")
        rest = self._rest()
        found = hand_on(self.relevance, rest, self.relevance, rest, hops=hops, shares=shares)
        how = "all the way" if hops is None else f"{hops} hop{'s' * (hops != 1)}"
        grew = "" if shares == POSITIVE else f", relevance grew up to {found.gain:.3g} times at one token"
        return replace(
            self,
            relevance=found.relevance,
            absorbed={kind: found.rest[kind] for kind in self.absorbed},
            other=None if self.other is None else self.other.handed_on(hops, shares=shares),
            through=found.through,
            ran=f"{self.ran}; handed on {how} by {shares} shares{grew}",
        )
