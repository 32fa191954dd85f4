"""What explains whole answers: immutable, on the CPU, free of any graph."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .answer import Answer
from .handing_on import POSITIVE


@dataclass(frozen=True, eq=False)
class GenerationAttribution:
    """The answers of a model, an :class:`Answer` for each sample, with where each token of it comes from.

    Made by :func:`attribute_generation`. ``result[i]`` is one answer; ``relevance``, ``scores`` and ``text`` are those
    of the only one, if there is one.
    """

    answers: tuple[Answer, ...]

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.answers)

    def __getitem__(self, sample: int) -> Answer:
        """Return one answer.

        Raises:
            TypeError: the number is none.
            IndexError: there is no such sample.
        """
        if isinstance(sample, bool) or not hasattr(sample, "__index__"):
            raise TypeError(f"sample must be a whole number, got {sample!r}")
        try:
            return self.answers[operator.index(sample)]
        except IndexError:
            raise IndexError(f"there is no sample {sample}: there are {len(self)}") from None

    @property
    def relevance(self) -> Tensor:
        """The relevance of the one answer, [rows, tokens of prompt, decoder start and answer]."""
        return self._only.relevance

    @property
    def scores(self) -> Tensor:
        """What is explained in the one answer, [rows]."""
        return self._only.scores

    @property
    def text(self) -> str:
        """The one answer as it reads."""
        return self._only.text

    @property
    def _only(self) -> Answer:
        if len(self) != 1:
            raise ValueError(f"there are {len(self)} answers: take one of them, result[0]")
        return self.answers[0]

    def handed_on(self, hops: int | None = None, *, shares: str = POSITIVE) -> GenerationAttribution:
        """Return the same with the relevance of the answers' own tokens handed on; see :meth:`Answer.handed_on`."""
        return GenerationAttribution(tuple(answer.handed_on(hops, shares=shares) for answer in self.answers))

    def __repr__(self) -> str:
        tokens = ", ".join(f"{answer.length} tokens" for answer in self.answers[:4])
        more = ", ..." if len(self) > 4 else ""
        return f"<GenerationAttribution: {len(self)} answer{'s' * (len(self) != 1)} ({tokens}{more})>"
