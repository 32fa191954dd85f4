"""The result of a similarity attribution: immutable, on the CPU, free of any graph."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..coverage.report import CoverageReport
from ..extras import needed
from ..heatmap import TextHeatmap, text
from ..heatmap.colors import color_map
from ..heatmap.picture import LIGHT, fonts, new_figure, visible, writable
from ..heatmap.tokens import labels_of
from ..ledger import Ledger
from .exports import TITLE, dataset, page_of, plain
from .second_order import Pairs

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]


@dataclass(frozen=True, eq=False)
class SimilarityAttribution:
    """The relevance of the places of two inputs for their ``similarity``. Made by :func:`attribute_similarity`.

    ``tokens`` names the places of both: tokens, patches of an image, steps of a sound; ``scores`` [places] is their
    relevance, in the unit of the similarity. The part on no place is :attr:`rest`, which a ``ledger`` splits up.
    ``pairs`` is the relevance of pairs of places, if that was asked for.
    """

    tokens: tuple[tuple[str, ...], tuple[str, ...]]
    scores: tuple[Tensor, Tensor]
    similarity: float
    report: CoverageReport
    ledger: Ledger | None = None
    pairs: Pairs | None = None
    scheme: str | None = None

    @property
    def rest(self) -> float:
        """The part of the similarity on no place: biases, softmax and the like."""
        return self.similarity - float(self.scores[0].sum()) - float(self.scores[1].sum())

    def strongest(self, k: int = 10) -> list[tuple[str, str, float]]:
        """Return the k pairs of most absolute relevance, most first: a place of each, and the relevance.

        Args:
            k: how many, from 1 on.

        Raises:
            ValueError: pairs were not asked for, or k is no whole number from 1 on.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a whole number from 1 on, got {k!r}")
        table = self._pairs().both
        order = table.abs().flatten().topk(min(k, table.numel())).indices.tolist()
        places = [divmod(number, table.shape[1]) for number in order]
        first, second = self.labels
        return [(first[i], second[j], float(table[i, j])) for i, j in places]

    @property
    def labels(self) -> tuple[list[str], list[str]]:
        """The texts of both inputs' tokens; tokens that only together are a character all have it."""
        first, second = (labels_of(one, scheme=self.scheme) for one in self.tokens)
        return first, second

    def _pairs(self) -> Pairs:
        if self.pairs is None:
            raise ValueError("pairs were not asked for: attribute_similarity(..., pairs=True)")
        return self.pairs

    def heatmap(self, **options: Any) -> TextHeatmap:
        """Return both texts, colored by relevance on one scale.

        Args:
            options: of :func:`lxt_compose.heatmap.text`.
        """
        titles = [f"similarity {self.similarity:.3g} of", "and"]
        named = {"titles": titles, "shared": True, "scheme": self.scheme, **options}
        return text([list(one) for one in self.tokens], [one.tolist() for one in self.scores], **named)

    def plot(self, ax: Any = None) -> Any:
        """Draw the relevance of pairs with matplotlib, the first input's places by the second's; returns the axes.

        Args:
            ax: axes to draw on; None makes a figure (``.figure`` of the axes).

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: pairs were not asked for.
        """
        values = self._pairs().both.float()
        if ax is None:
            size = (min(16.0, 2.2 + 0.28 * values.shape[1]), min(16.0, 1.8 + 0.28 * values.shape[0]))
            ax = new_figure(*size, dark=False).add_subplot()
        limit = float(values.abs().max()) or 1.0
        ax.imshow(values.numpy(), cmap=color_map(LIGHT[0], dark=False), vmin=-limit, vmax=limit, aspect="auto")
        style = {"fontsize": 8, "family": fonts(), "parse_math": False}
        for axis, names, turned in ((ax.xaxis, self.labels[1], 90), (ax.yaxis, self.labels[0], 0)):
            step = -(-len(names) // 60)
            axis.set_ticks(range(0, len(names), step), [visible(n) for n in names[::step]], rotation=turned, **style)
        return ax

    def to_dataframe(self) -> DataFrame:
        """Return one row per place: input ("first" or "second"), position, token, score. Needs pandas.

        With pairs, one row per pair: position and token of each, relevance.

        Raises:
            ImportError: pandas is not installed.
        """
        pandas = needed("pandas", "to_dataframe() needs pandas: pip install pandas")
        if self.pairs is not None:
            both = self.pairs.both.tolist()
            rows: list[dict[str, Any]] = [
                {"first": i, "second": j, "token_first": a, "token_second": b, "relevance": both[i][j]}
                for i, a in enumerate(self.labels[0])
                for j, b in enumerate(self.labels[1])
            ]
            return pandas.DataFrame(rows)
        sides = zip(("first", "second"), self.labels, self.scores, strict=True)
        return pandas.DataFrame(
            {"input": side, "position": place, "token": token, "score": score}
            for side, tokens, scores in sides
            for place, (token, score) in enumerate(zip(tokens, scores.tolist(), strict=True))
        )

    def to_xarray(self) -> Any:
        """Return a Dataset of xarray: ``first_score`` [first], ``second_score`` [second], ``pair`` [first, second].

        Raises:
            ImportError: xarray is not installed.
        """
        return dataset(self)

    def to_json(self, *, indent: int | None = None) -> str:
        """Return everything but the reports as JSON; see :func:`plain`."""
        return json.dumps(plain(self), indent=indent, ensure_ascii=False)

    def page(self, path: str | Path, *, title: str = TITLE) -> Path:
        """Write a page: both texts, pairs if they were asked for, the account and the coverage; returns its path.

        Args:
            path: where to.
            title: of the page.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        place = writable(path)
        place.write_text(page_of([self], title=title), encoding="utf-8")
        return place

    def __repr__(self) -> str:
        sizes = " x ".join(str(len(one)) for one in self.tokens)
        covered = "complete" if self.report.complete else "NOT complete"
        return f"<SimilarityAttribution: {self.similarity:.4g}, {sizes} places, {covered}>"

    def _repr_html_(self) -> str:
        return self.heatmap().html()
