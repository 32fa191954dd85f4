"""Bars of relevance for things with names and without an order, the most relevant first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .colors import AGAINST, FOR, scale_of, strength
from .picture import DARK, LIGHT, STYLE, Picture, fonts, headings, new_figure, number, numbers_of, text_width, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN, _SIZE, _LINE, _BAR, _LONGEST = 30, 9.0, 0.24, 2.6, 40
_STYLE = """
.lxt-bars table{border-collapse:collapse;font-size:.875rem}.lxt-bars td{padding:.12em .5em;border:0}
.lxt-bars td:first-child{text-align:right;overflow-wrap:anywhere}
.lxt-bars td:nth-child(2){font-variant-numeric:tabular-nums;text-align:right}
.lxt-bars .half{display:inline-block;width:8em;height:.8em;vertical-align:middle}
.lxt-bars .half i{display:block;height:100%}.lxt-bars .name{font-weight:600;margin:.6em 0 .2em}
.lxt-bars .rest{color:var(--dim)}
"""


def bars(
    names: Sequence[str],
    scores: Any,
    *,
    titles: str | Sequence[str] | None = None,
    most: int = _SHOWN,
    limit: float | None = None,
    shared: bool = False,
) -> BarsHeatmap:
    """Return bars of relevance for things with names, such as features or nodes: red for the target, blue against it.

    Args:
        names: their names.
        scores: [names], or [n, names] for several samples; any unit.
        titles: one for each sample.
        most: how many are shown of each sample, the most relevant first; the rest is added up.
        limit: the score of the longest bar; by default the largest absolute score of each sample.
        shared: whether all samples share one scale.

    Raises:
        TypeError: names or titles are no texts, or scores no numbers.
        ValueError: there is not one finite score for each name.
    """
    values = numbers_of(scores, "scores")
    values = values[None] if values.dim() == 1 else values
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names must be a list of texts, got {names!r}")
    if values.dim() != 2 or not values.numel() or values.shape[1] != len(names):
        raise ValueError(f"there are {len(names)} names, but scores of shape {list(values.shape)}")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"most must be a whole number from 1 on, got {most!r}")
    limit = scale_of(values.flatten().tolist(), limit) if shared else limit
    scales = tuple(scale_of(row.tolist(), limit) for row in values)
    return BarsHeatmap(tuple(names), values, tuple(headings(titles, len(values))), scales, most)


@dataclass(frozen=True, eq=False, repr=False)
class BarsHeatmap(Picture):
    """Names with bars of their relevance; made by :func:`bars`."""

    names: tuple[str, ...]
    scores: Tensor
    titles: tuple[str, ...]
    scales: tuple[float, ...]
    most: int

    title = "relevance by name"

    def __repr__(self) -> str:
        return f"<BarsHeatmap: {len(self.scores)} x {len(self.names)} names>"

    def rows(self, sample: int) -> list[tuple[str, float, float | None]]:
        """Return the rows of a sample: name, score and the length of its bar from -1 to 1; the rest has no bar."""
        values = self.scores[sample]
        order = values.abs().argsort(descending=True, stable=True).tolist()
        shown = order if len(order) <= self.most + 1 else order[: self.most]
        scale = self.scales[sample]
        rows: list[tuple[str, float, float | None]] = [
            (visible(self.names[i]), float(values[i]), strength(float(values[i]), scale)) for i in shown
        ]
        rest = order[len(shown) :]
        return [*rows, (f"{len(rest)} more, added up", float(values[rest].sum()), None)] if rest else rows

    def __str__(self) -> str:
        """Return a plain table: score, bar and name on each line."""
        lines: list[str] = []
        for sample, title in enumerate(self.titles):
            lines += [visible(title)] if title else []
            for name, score, length in self.rows(sample):
                size = round(abs(length or 0.0) * 10)
                bar = ("-" * size).rjust(10) + "|" if score < 0 else " " * 10 + "|" + "+" * size
                lines.append(f"{number(score):>11} {bar:<21} {name}".rstrip())
        return "\n".join(lines)

    def html(self) -> str:
        """Return a table with bars."""
        parts = []
        for sample, title in enumerate(self.titles):
            parts.append(f'<div class="name">{escape(visible(title))}</div>' if title else "")
            parts.append("<table>" + "".join(map(_row, self.rows(sample))) + "</table>")
        return f'<div class="lxt lxt-bars"><style>{STYLE}{_STYLE}</style>{"".join(parts)}</div>'

    def figure(self, *, dark: bool = False) -> Figure:
        """Return the bars of all samples below each other."""
        ink = [c / 255 for c in (DARK if dark else LIGHT)[1]]
        style: dict[str, Any] = {"size": _SIZE, "color": ink, "family": fonts(), "parse_math": False}
        panels = [self.rows(sample) for sample in range(len(self.scores))]
        labels = [[_short(name) for name, _, _ in rows] for rows in panels]
        left = 0.3 + max(text_width(label) for row in labels for label in row) * _SIZE
        head = 0.34 if any(self.titles) else 0.1
        width = max(left + _BAR + 1.9, 4.0)
        height = sum(len(rows) * _LINE + head + 0.12 for rows in panels) + 0.1
        figure, top = new_figure(width, height, dark=dark), height
        for rows, names, title in zip(panels, labels, self.titles, strict=True):
            high = len(rows) * _LINE
            top -= head + high
            axes = figure.add_axes((left / width, top / height, (_BAR + 0.8) / width, high / height))
            top -= 0.12
            _draw(axes, rows, names, ink, style)
            axes.set_title(visible(title)[:80], pad=4, **style)
        return figure


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _draw(axes: Any, rows: Sequence[Any], names: Sequence[str], ink: Any, style: dict[str, Any]) -> None:
    places = list(range(len(rows)))
    colors = [[c / 255 for c in (FOR if score > 0 else AGAINST)] for _, score, _ in rows]
    axes.barh(places, [length or 0.0 for _, _, length in rows], height=0.72, color=colors)
    axes.axvline(0, color=ink, linewidth=0.6)
    axes.set(xlim=(-1.04, 1.04), ylim=(len(rows) - 0.5, -0.5), xticks=[])
    axes.set_yticks(places, names, **style)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)
    for place, (_, score, _) in zip(places, rows, strict=True):
        axes.text(1.08, place, number(score), va="center", **style)


def _row(row: tuple[str, float, float | None]) -> str:
    name, score, length = row
    if length is None:
        return f'<tr class="rest"><td>{escape(name)}</td><td>{number(score)}</td><td></td></tr>'
    against, favor = (f"{abs(length):.1%}", "0") if length < 0 else ("0", f"{length:.1%}")
    halves = (
        f'<span class="half"><i style="width:{against};margin-left:auto;background:rgb{AGAINST}"></i></span>'
        f'<span class="half"><i style="width:{favor};background:rgb{FOR}"></i></span>'
    )
    return f"<tr><td>{escape(name)}</td><td>{number(score)}</td><td>{halves}</td></tr>"
