"""Relevance of a series: the signal as lines on a strip that the relevance colors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .colors import color_map, scale_of
from .picture import DARK, LIGHT, Picture, color_bar, drawn, fonts, headings, new_figure, numbers_of, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HIGH, _HEAD, _FOOT, _SIZE = 9.0, 1.25, 0.42, 0.75, 9.5
_BINS, _LINES, _MOST = 900, 6, 64


def series(
    relevance: Any,
    signal: Any = None,
    *,
    titles: str | Sequence[str] | None = None,
    limit: float | None = None,
    shared: bool = False,
) -> SeriesHeatmap:
    """Return series colored by relevance: red speaks for the target, blue against it.

    A long series is drawn in steps of equal length, each with the sum of its relevance.

    Args:
        relevance: [time], or [n, time] for several; any unit.
        signal: the explained signal, [n, time] or [n, channels, time], drawn as lines.
        titles: one for each series.
        limit: the relevance of full color; by default the largest absolute one of each series.
        shared: whether all series share one scale.

    Raises:
        TypeError: titles are no texts, or values no numbers.
        ValueError: shapes do not fit, or a value is not finite.
    """
    values = numbers_of(relevance, "relevance")
    values = values[None] if values.dim() == 1 else values
    if values.dim() != 2 or not values.numel():
        raise ValueError(f"relevance of series must be [time] or [n, time], got {list(values.shape)}")
    if len(values) > _MOST:
        raise ValueError(f"a picture shows at most {_MOST} series, got {len(values)}; pass some of them")
    lines = None if signal is None else numbers_of(signal, "signal")
    if lines is not None:
        lines = lines[None] if lines.dim() < 2 else lines
        lines = lines[:, None] if lines.dim() == 2 else lines
        if (len(lines), lines.shape[-1]) != tuple(values.shape):
            raise ValueError(f"a signal of {list(lines.shape)} does not fit relevance of {list(values.shape)}")
    step = -(-values.shape[1] // _BINS)
    bins = torch.nn.functional.pad(values, (0, -values.shape[1] % step)).unflatten(1, (-1, step)).sum(2)
    limit = scale_of(bins.flatten().tolist(), limit) if shared else limit
    scales = tuple(scale_of(row.tolist(), limit) for row in bins)
    return SeriesHeatmap(values, bins, lines, tuple(headings(titles, len(values))), scales, step)


@dataclass(frozen=True, eq=False, repr=False)
class SeriesHeatmap(Picture):
    """Series with their relevance; made by :func:`series`. ``bins`` is what is drawn: sums of ``step`` points each."""

    scores: Tensor
    bins: Tensor
    signal: Tensor | None
    titles: tuple[str, ...]
    scales: tuple[float, ...]
    step: int

    title = "relevance of series"

    def __repr__(self) -> str:
        return f"<SeriesHeatmap: {len(self.scores)} x {self.scores.shape[1]} points>"

    def figure(self, *, dark: bool = False) -> Figure:
        """Return the series below each other."""
        ink = [c / 255 for c in (DARK if dark else LIGHT)[1]]
        style: dict[str, Any] = {"color": ink, "family": fonts(), "parse_math": False}
        head = _HEAD if any(self.titles) else 0.2
        one = _HIGH + head + 0.16
        height = len(self.scores) * one + _FOOT
        figure = new_figure(_WIDTH, height, dark=dark)
        for place, title in enumerate(self.titles):
            box = (0.05, (height - place * one - head - _HIGH) / height, 0.9, _HIGH / height)
            axes = figure.add_axes(box)
            self._draw(axes, place, ink, dark)
            axes.set_title(visible(title)[:110], size=_SIZE, pad=3, **style)
            axes.tick_params(length=2, labelsize=8, color=ink, labelcolor=ink)
            axes.spines[:].set(color="0.55", linewidth=0.6)
        long = 2.0
        scale = self.scales[0] if len(set(self.scales)) == 1 else None
        color_bar(figure, (0.5 - long / 2 / _WIDTH, 0.4 / height, long / _WIDTH, 0.11 / height), scale, dark=dark)
        if self.step > 1:
            figure.text(
                0.95, 0.12 / height, f"each strip is the sum of {self.step} points", ha="right", size=8, **style
            )
        return figure

    def _draw(self, axes: Any, place: int, ink: Any, dark: bool) -> None:
        count = self.scores.shape[1]
        relative = (self.bins[place] / self.scales[place])[None].numpy()
        axes.imshow(
            relative, cmap=color_map((DARK if dark else LIGHT)[0], dark=dark), vmin=-1, vmax=1, aspect="auto",
            interpolation="nearest", extent=(-0.5, self.bins.shape[1] * self.step - 0.5, 0, 1),
        )  # fmt: skip
        axes.set(yticks=[], xlim=(-0.5, count - 0.5), ylim=(0, 1))
        if self.signal is None:
            return
        lines = self.signal[place]
        low, high = float(lines.min()), float(lines.max())
        for number, line in enumerate(lines[:_LINES]):
            at = 0.06 + 0.88 * (line - low) / ((high - low) or 1.0)
            axes.plot(range(count), at.tolist(), color=ink, linewidth=0.9, alpha=1 / (1 + 0.35 * number))

    def html(self) -> str:
        """Return the series as pictures inside of the HTML: one for light, one for dark backgrounds."""
        return drawn(self, "relevance of series", self.titles)
