"""One answer of a model, and what each part of it comes from: data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..coverage.report import CoverageReport
from ..heatmap.tokens import Piece, pieces_of
from ..ledger import Ledger
from .prompts import TEMPLATE
from .spans import Span, written

PROMPT, START, OUTPUT = "prompt", "start", "output"
REST = "biases and the like"
"""What of a score is on no token: biases, what softmax and stabilizers absorb, constants such as position tables."""


@dataclass(frozen=True)
class Sources:
    """The tokens that relevance can be on, in their order: the prompt, what a decoder starts with, the answer.

    ``roles`` are those of a chat, empty without one; ``special`` tells tokens that stand for no text.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    sides: tuple[str, ...]
    roles: tuple[str, ...]
    special: tuple[bool, ...]
    scheme: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, side: str) -> range:
        """Return which tokens are on a side: "prompt", "start" or "output"."""
        first = self.sides.index(side) if side in self.sides else 0
        return range(first, first + self.sides.count(side))

    def groups(self) -> dict[str, Tensor]:
        """Return which tokens belong together in sums, by name: [tokens], true or false.

        The words of the prompt (of a chat by role), special tokens and the template, the decoder's start, the answer.
        """
        names = []
        for side, role, special in zip(self.sides, self.roles or [""] * len(self), self.special, strict=True):
            extra = side == PROMPT and (special or role == TEMPLATE)
            names.append("special tokens" if extra else role if side == PROMPT and role else side)
        return {name: torch.tensor([each == name for each in names]) for name in dict.fromkeys(names)}

    def pieces(self, side: str) -> list[Piece]:
        """Return one side as it reads; the numbers of its tokens begin at 0."""
        places = self.places(side)
        tokens = [self.tokens[place] for place in places]
        special = [self.tokens[place] for place in places if self.special[place]]
        return pieces_of(tokens, scheme=self.scheme, special=special)


@dataclass(frozen=True)
class Predictions:
    """What the model held likely at each place of the answer, for T tokens.

    ``logits``, ``probabilities`` and ``ranks`` (0 is the first) [T] are those of the token that came; ``top_ids`` and
    ``top_probabilities`` [T, k] those of the most likely ones, named in ``top_tokens``.
    """

    logits: Tensor
    probabilities: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_probabilities: Tensor
    top_tokens: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class Answer:
    """One sequence: relevance [rows, tokens] of each token for each span, in the unit of ``scores`` [rows].

    ``quantity`` is what is explained: the logit or the log-probability of each token of a span, added up. What of a
    score is on no token is its rest; with a ledger, ``absorbed`` names it by kind, [rows] each. ``other`` is the answer
    that it is contrasted with. ``ran`` says how.
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

    @property
    def length(self) -> int:
        """How many tokens the answer has."""
        return len(self.sources.places(OUTPUT))

    @cached_property
    def text(self) -> str:
        """The answer as it reads."""
        return written(self.sources.pieces(OUTPUT))

    def sums(self) -> dict[str, Tensor]:
        """Return where each score is, [rows] by name: groups of tokens, and the rest; they add up to the scores.

        The rest is apart by kinds if there is a ledger.
        """
        found = {name: self.relevance[:, place].sum(1) for name, place in self.sources.groups().items()}
        rest = self.scores - self.relevance.sum(1)
        for kind, amount in self.absorbed.items():
            found[kind] = amount.to(rest)
            rest = rest - found[kind]
        return {**found, REST if not self.absorbed else "unaccounted": rest}

    def complete(self) -> bool:
        """Return whether every token of the answer has a row of its own, in order."""
        return [(span.start, span.stop) for span in self.spans] == [(n, n + 1) for n in range(self.length)]

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
