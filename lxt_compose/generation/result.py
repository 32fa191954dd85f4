"""The result of an attribution of answers: immutable, on the CPU, free of any graph."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..heatmap.picture import writable
from .answer import Answer
from .exports import dataframe, dataset, plain, plot
from .handing_on import POSITIVE
from .page import TITLE, frame_of, page_of

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]


@dataclass(frozen=True, eq=False)
class GenerationAttribution:
    """The explained answers of a model, an :class:`Answer` for each sample.

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
        """The explained numbers of the one answer, [rows]."""
        return self._only.scores

    @property
    def text(self) -> str:
        """The text of the one answer."""
        return self._only.text

    @property
    def _only(self) -> Answer:
        if len(self) != 1:
            raise ValueError(f"there are {len(self)} answers: take one of them, result[0]")
        return self.answers[0]

    def handed_on(self, hops: int | None = None, *, shares: str = POSITIVE) -> GenerationAttribution:
        """Return the same with the relevance of the answers' own tokens handed on; see :meth:`Answer.handed_on`."""
        return GenerationAttribution(tuple(answer.handed_on(hops, shares=shares) for answer in self.answers))

    def to_dataframe(self) -> DataFrame:
        """Return one row per score: sample, target, its place, and side, role, token and relevance of a source.

        Needs pandas. Sources are the tokens that come before a target.

        Raises:
            ImportError: pandas is not installed.
        """
        return dataframe(self.answers)

    def to_xarray(self, sample: int = 0) -> Any:
        """Return a Dataset of xarray: ``relevance`` [target, source], ``score`` [target], ``sums`` [group, target].

        Raises:
            ImportError: xarray is not installed.
            IndexError: there is no such sample.
        """
        return dataset(self[sample])

    def to_json(self, *, indent: int | None = None) -> str:
        """Return everything but the reports as JSON: a list with an object for each answer; see :func:`plain`."""
        return json.dumps([plain(answer) for answer in self.answers], indent=indent, ensure_ascii=False)

    def plot(self, ax: Any = None, *, sample: int = 0) -> Any:
        """Draw the relevance of one answer, targets by sources, with matplotlib; returns the axes.

        Args:
            ax: axes to draw on; None makes a figure (``.figure`` of the axes).
            sample: which answer.

        Raises:
            ImportError: matplotlib is not installed.
            IndexError: there is no such sample.
        """
        return plot(self[sample], ax)

    def page(self, path: str | Path, *, title: str = TITLE, sources: int = 64) -> Path:
        """Write a page to read the answers on, as one file that needs no network; returns its path.

        Args:
            path: the file.
            title: of the page.
            sources: how many of the strongest sources are kept for each piece of an answer that has more than 256.

        Raises:
            FileNotFoundError: the folder does not exist.
            ImportError: Jinja2 is not installed.
        """
        place = writable(path)
        place.write_text(page_of(self, title=title, sources=sources), encoding="utf-8")
        return place

    def _repr_html_(self) -> str:
        return frame_of(self)

    def __repr__(self) -> str:
        tokens = ", ".join(f"{answer.length} tokens" for answer in self.answers[:4])
        more = ", ..." if len(self) > 4 else ""
        return f"<GenerationAttribution: {len(self)} answer{'s' * (len(self) != 1)} ({tokens}{more})>"
