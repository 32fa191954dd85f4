"""The result of tuning: the scores of all candidates, the best one, and the differences that are noise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from tabulate import tabulate
from torch import Tensor

from ..composite import Composite
from ..extras import needed
from .candidates import Candidate
from .noise import Resampled
from .tuning_plot import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame  # type: ignore[import-untyped]

_DEFAULT, _NAMED = "attnlrp", 4


@dataclass(frozen=True, eq=False)
class Tuning:
    """The scores of candidates on n samples; made by :func:`tune`.

    ``values`` [candidates, n] are the scores, more is better, NaN where a candidate failed; ``fold`` [n] is the fold of
    each sample; ``failed`` says by name why a candidate failed. ``best`` is the candidate of the largest mean,
    ``composite`` its composite, ready for :func:`attribute`.
    """

    candidates: tuple[Candidate, ...]
    values: Tensor
    fold: Tensor
    score: str
    failed: dict[str, str]
    confidence: float
    seed: int

    @property
    def means(self) -> Tensor:
        """The mean score of each candidate, [candidates]."""
        return self.values.mean(1)

    @property
    def best(self) -> Candidate:
        """The candidate of the largest mean; of equal ones the first."""
        return self.candidates[_largest(self.means)]

    @property
    def composite(self) -> Composite:
        """The best composite."""
        return self.best.composite

    @cached_property
    def chosen(self) -> tuple[Candidate, ...]:
        """For each fold the candidate that is the best on the other folds."""
        parts = range(int(self.fold.max()) + 1)
        return tuple(self.candidates[_largest(self.values[:, self.fold != part].mean(1))] for part in parts)

    @cached_property
    def held_out(self) -> Tensor:
        """The score of each sample under the candidate that is the best without its fold, [n]."""
        places = torch.tensor([self.candidates.index(candidate) for candidate in self.chosen])
        return self.values[places[self.fold], torch.arange(len(self.fold))]

    @cached_property
    def intervals(self) -> Tensor:
        """Lower and upper end of an interval of each candidate's mean, [candidates, 2], by bootstrap over samples."""
        found = torch.full((len(self.candidates), 2), torch.nan, dtype=self.values.dtype)
        found[self._worked] = torch.stack(self._resampled.interval(self.confidence), 1)
        return found

    @cached_property
    def within_noise(self) -> tuple[Candidate, ...]:
        """The candidates, the best first, that these samples do not distinguish from the best.

        The one with the largest true mean is among them with the given confidence, although the same samples chose the
        best; see :meth:`Resampled.may_be_best`.
        """
        kept = self._resampled.may_be_best(self.confidence).tolist()
        places = [place for place, is_kept in zip(self._worked.tolist(), kept, strict=True) if is_kept]
        places = list(dict.fromkeys([self.candidates.index(self.best), *self._ordered(places)]))
        return tuple(self.candidates[place] for place in places)

    def over(self, name: str) -> tuple[float, float, float]:
        """Return the difference of the held-out scores to those of one candidate: mean, and ends of its interval.

        This is the gain by tuning over a candidate that needs none (``"attnlrp"``); without gain it is not above 0.

        Raises:
            KeyError: there is no such candidate, or it failed.
        """
        names = [candidate.name for candidate in self._working]
        if name not in names:
            raise KeyError(f"no candidate is called {name!r}; there are {', '.join(names)}")
        found = next(row for row, candidate in zip(self.values, self.candidates, strict=True) if candidate.name == name)
        drawn = Resampled((self.held_out - found)[None], seed=self.seed)
        low, high = drawn.interval(self.confidence)
        return float(drawn.means), float(low), float(high)

    def verdict(self) -> str:
        """Return a text: the best candidate, its expected score, and the differences that are noise."""
        drawn = Resampled(self.held_out[None], seed=self.seed)
        low, high = (float(end) for end in drawn.interval(self.confidence))
        counts = Counter(candidate.name for candidate in self.chosen)
        told = ", ".join(f"{name} ({count} of {len(self.chosen)} folds)" for name, count in counts.most_common())
        lines = [
            f"best by {self.score}: {self.best.name}, {float(self.means[self.candidates.index(self.best)]):.4g}",
            f"held out: {float(drawn.means):.4g} ({self.confidence:.0%} interval {low:.4g} to {high:.4g}, "
            f"{len(self.fold)} samples), each fold with the best on the others: {told}",
        ]
        if self.best.name != _DEFAULT and any(candidate.name == _DEFAULT for candidate in self._working):
            mean, low, high = self.over(_DEFAULT)
            lines.append(f"held out, over {_DEFAULT}, the default: {mean:+.4g} ({low:+.4g} to {high:+.4g})")
        return "\n".join([*lines, self._noise()])

    def _noise(self) -> str:
        others, count = self.within_noise[1:], len(self._working) - 1
        sure = f"({self.confidence:.0%} confidence)"
        if not count:
            return "noise: nothing to compare with"
        if not others:
            return f"noise: the lead over each of the {count} others is larger than noise {sure}"
        if len(others) == count:
            return (
                f"noise: all {count + 1} are within the noise of each other {sure}: take the simplest, or more samples"
            )
        names = ", ".join(candidate.name for candidate in others[:_NAMED])
        rest = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        return (
            f"noise: {len(others)} of {count} others cannot be told from the best {sure}: {names}{rest}; take the "
            f"simplest of them, or more samples"
        )

    @property
    def _working(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.name not in self.failed]

    @property
    def _worked(self) -> Tensor:
        return torch.tensor([place for place, c in enumerate(self.candidates) if c.name not in self.failed])

    @cached_property
    def _resampled(self) -> Resampled:
        return Resampled(self.values[self._worked], seed=self.seed)

    def _ordered(self, places: list[int]) -> list[int]:
        return sorted(places, key=lambda place: -float(self.means[place]))

    def _rows(self) -> list[dict[str, Any]]:
        near = {candidate.name for candidate in self.within_noise}
        counts = Counter(candidate.name for candidate in self.chosen)
        best = float(self.means[self.candidates.index(self.best)])
        rows = []
        for place in [*self._ordered(self._worked.tolist()), *self._failed_places()]:
            candidate, mean = self.candidates[place], float(self.means[place])
            low, high = self.intervals[place].tolist()
            rows.append({
                "candidate": candidate.name, **candidate.arguments, "score": mean, "low": low, "high": high,
                "below best": best - mean, "within noise": candidate.name in near, "folds": counts[candidate.name],
                "failed": self.failed.get(candidate.name, ""),
            })  # fmt: skip
        return rows

    def _failed_places(self) -> list[int]:
        return [place for place, candidate in enumerate(self.candidates) if candidate.name in self.failed]

    def to_dataframe(self) -> DataFrame:
        """Return one row for each candidate, the best first; a column for each argument. Needs pandas.

        ``score`` is the mean, ``low`` and ``high`` the ends of its interval, ``folds`` the number of folds that chose
        it.

        Raises:
            ImportError: pandas is not installed.
        """
        DataFrame = needed("pandas", "to_dataframe() needs pandas: pip install 'lxt-compose[tables]'").DataFrame
        return DataFrame(self._rows())

    def plot(self, over: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw scores with their intervals, and the held-out score as a line; returns the axes.

        A curve over an argument, with one line for each combination of the others; or, where no argument is a number,
        a bar for each candidate.

        Args:
            over: the argument; None is the first that has several numbers.
            ax: axes of matplotlib; None draws on a new figure.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: no candidate has such an argument with numbers.
        """
        return draw(self._rows(), self.candidates, float(self.held_out.mean()), self.score, over, ax)

    def __str__(self) -> str:
        rows = [
            [row["candidate"], "failed", "", "", row["failed"]] if row["failed"] else
            [row["candidate"], f"{row['score']:.4g}", f"{row['low']:.4g} to {row['high']:.4g}", row["folds"] or "",
             "best" if row["candidate"] == self.best.name else "within the noise" if row["within noise"] else ""]
            for row in self._rows()
        ]  # fmt: skip
        head = ["candidate", self.score, f"{self.confidence:.0%} interval", "folds", ""]
        return f"{tabulate(rows, headers=head, disable_numparse=True)}\n\n{self.verdict()}"

    def _repr_html_(self) -> str:
        return f'<pre style="overflow-x:auto">{escape(str(self))}</pre>'


def _largest(means: Tensor) -> int:
    return int(means.nan_to_num(nan=-torch.inf).argmax())
