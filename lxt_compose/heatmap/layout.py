"""Texts drawn by matplotlib: lines are broken by the widths that the glyphs have."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .colors import over, strength
from .picture import DARK, LIGHT, fonts, new_figure, number, text_width, visible
from .tokens import Sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# All in points, 72 to the inch.
_WIDTH, _MARGIN, _SIZE, _LEADING = 504.0, 18.0, 12.0, 24.0


def draw_texts(sentences: Sequence[Sentence], scale: float | None, *, dark: bool) -> Figure:
    """Return the texts below each other, each token on its color, with a legend under them, or under each."""

    def measure(text: str) -> float:
        return text_width(text) * _SIZE * 72

    placed: list[Any] = []
    legends: list[tuple[float, float]] = []
    height = _MARGIN
    for sentence in sentences:
        if sentence.title:
            placed.append((_MARGIN, height, None, 0.0, visible(sentence.title), False))
            height += _LEADING
        boxes, height = _broken(sentence, measure, height)
        placed += boxes
        if scale is None:
            legends.append((height + 6, sentence.scale))
            height += _LEADING
        height += _LEADING / 2
    if scale is not None:
        legends.append((height + 6, scale))
        height += _LEADING
    total = height + _MARGIN - _LEADING / 2
    figure = new_figure(_WIDTH / 72, total / 72, dark=dark)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _WIDTH), ylim=(total, 0))
    axes.set_axis_off()
    _paint(axes, placed, dark)
    for top, full in legends:
        _legend(axes, full, top, measure, dark)
    return figure


def _broken(sentence: Sentence, measure: Any, top: float) -> tuple[list[Any], float]:
    """Return boxes (left, top, value, width, text, marked) of the pieces, and where the next line begins."""
    left, boxes, space = _MARGIN, [], measure("n n") - measure("nn")
    for piece, score in zip(sentence.pieces, sentence.scores, strict=True):
        text = visible(piece.text)
        width = space * len(text) if piece.blank else max(measure(text), 2.0)
        if piece.space and left > _MARGIN:
            left += space
        if piece.lines:
            top, left = top + _LEADING * piece.lines, _MARGIN
        parts = [(text, width)] if width <= _WIDTH - 2 * _MARGIN else [(p, measure(p)) for p in _cut(text, measure)]
        for part, size in parts:
            if left > _MARGIN and left + size > _WIDTH - _MARGIN:
                top, left = top + _LEADING, _MARGIN
            boxes.append((left, top, strength(score, sentence.scale), size, part, sentence.stands_out(piece)))
            left += size
    return boxes, top + _LEADING


def _cut(text: str, measure: Any) -> list[str]:
    """Return a text that fits in no line, in parts that do, each as long as possible."""
    room, parts = _WIDTH - 2 * _MARGIN, []
    while text:
        fitting = bisect_right(range(2, len(text) + 1), room, key=lambda size: measure(text[:size])) + 1
        parts.append(text[:fitting])
        text = text[fitting:]
    return parts


def _paint(axes: Any, placed: Sequence[Any], dark: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    background, ink = DARK if dark else LIGHT
    for left, top, value, width, text, marked in placed:
        if value or marked:
            color = [c / 255 for c in over(background, value)]
            edge = [c / 255 for c in ink] if marked else "none"
            shape = FancyBboxPatch(
                (left, top + 1), width, _SIZE + 5, boxstyle="round,pad=0,rounding_size=2", facecolor=color,
                edgecolor=edge, linewidth=1.2 if marked else 0,
            )  # fmt: skip
            axes.add_artist(shape)
        axes.text(
            left, top + _SIZE + 1, text, size=_SIZE, family=fonts(), color=[c / 255 for c in ink], parse_math=False,
            weight="bold" if value is None else "normal",
        )  # fmt: skip


def _legend(axes: Any, scale: float, top: float, measure: Any, dark: bool) -> None:
    """Write a bar of colors."""
    background, ink = DARK if dark else LIGHT
    words = (f"against {number(-scale)}", f"{number(scale)} for")
    steps, width, left = 100, 110.0, _MARGIN + measure(words[0]) * 9 / _SIZE + 6
    for step in range(steps):
        value = (2 * step + 1) / steps - 1
        color = [c / 255 for c in over(background, value)]
        axes.fill_between(
            [left + width * step / steps, left + width * (step + 1) / steps], top, top + 8, color=color, linewidth=0
        )
    style = {"size": 9, "color": [c / 255 for c in ink], "parse_math": False}
    axes.text(_MARGIN, top + 8, words[0], **style)
    axes.text(left + width + 6, top + 8, words[1], **style)
