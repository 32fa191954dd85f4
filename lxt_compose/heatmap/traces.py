"""Pictures of layers by tokens: where the relevance of a text is in each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .colors import color_map, scale_of, strength
from .picture import DARK, LIGHT, STYLE, Picture, color_bar, fonts, new_figure, numbers_of, text_width, tip_of, visible
from .texts import legend, rgba
from .tokens import pieces_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SIZE, _CELL = 8.5, 0.24
_COLUMNS = 60
"""Tokens in a row; more are drawn in several rows."""
_STYLE = """
.lxt-trace{overflow-x:auto}
.lxt-trace table{border-collapse:separate;border-spacing:1px;font-size:.8rem}
.lxt-trace th{font-weight:400;text-align:right;padding:0 .5em;white-space:nowrap;color:var(--dim)}
.lxt-trace thead th{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left;padding:.3em 0;vertical-align:top;
max-height:8em;overflow:hidden;text-overflow:ellipsis}
.lxt-trace td{width:1.5em;min-width:1.1em;height:1.25em;padding:0;box-shadow:inset 0 0 0 1px var(--line)}
"""


def trace(
    layers: Sequence[str], tokens: Sequence[str], scores: Any, *, limit: float | None = None, columns: int = _COLUMNS
) -> TraceHeatmap:
    """Return a picture of relevance [layers, tokens]: the first layer, nearest to the input, at the bottom.

    A long text is drawn in several parts below each other.

    Each layer sums to the output less what was absorbed above it, so all share one scale, symmetric around 0.

    Args:
        layers: their names.
        tokens: as the tokenizer names them.
        scores: [layers, tokens], see :meth:`Attribution.trace`.
        limit: the relevance of full color; by default the largest absolute one.
        columns: how many tokens stand beside each other.

    Raises:
        TypeError: scores are no numbers.
        ValueError: shapes do not fit, nothing is given, a score is not finite, or there are no columns.
    """
    if isinstance(columns, bool) or not isinstance(columns, int) or columns < 1:
        raise ValueError(f"columns must be a whole number from 1 on, got {columns!r}")
    values = numbers_of(scores, "scores")
    if values.shape != (len(layers), len(tokens)) or not values.numel():
        raise ValueError(f"{len(layers)} layers and {len(tokens)} tokens do not fit scores of {list(values.shape)}")
    scale = scale_of(values.flatten().tolist(), limit)
    return TraceHeatmap(tuple(map(str, layers)), tuple(map(str, tokens)), values, scale, columns)


@dataclass(frozen=True, eq=False, repr=False)
class TraceHeatmap(Picture):
    """Relevance by layer and token; made by :func:`trace`."""

    layers: tuple[str, ...]
    tokens: tuple[str, ...]
    scores: Tensor
    scale: float
    columns: int = _COLUMNS

    title = "relevance by layer"

    def __repr__(self) -> str:
        return f"<TraceHeatmap: {len(self.layers)} layers, {len(self.tokens)} tokens>"

    def labels(self) -> list[str]:
        """Return the tokens without the marks of word pieces."""
        labels = list(self.tokens)
        for piece in pieces_of(self.tokens):
            for place in piece.tokens:
                labels[place] = piece.label if place == piece.tokens[0] else "…"
        return [visible(label) for label in labels]

    def _parts(self) -> list[slice]:
        """Return the tokens in groups that are drawn in one row each."""
        count = len(self.tokens)
        return [slice(start, min(start + self.columns, count)) for start in range(0, count, self.columns)]

    def html(self) -> str:
        """Return a table, or one for each part of a long text; the pointer on a cell shows layer, token and score."""
        tables = "".join(self._table(part) for part in self._parts())
        return f'<div class="lxt lxt-trace"><style>{STYLE}{_STYLE}</style>{tables}{legend(self.scale)}</div>'

    def _table(self, part: slice) -> str:
        head = "".join(f"<th>{escape(label)}</th>" for label in self.labels()[part])
        rows = ""
        for layer, row in reversed(list(zip(self.layers, self.scores[:, part].tolist(), strict=True))):
            cells = ""
            for token, score in zip(self.tokens[part], row, strict=True):
                tip = tip_of(f"{layer}  {token}", score)
                cells += f'<td style="background:{rgba(strength(score, self.scale))}" data-tip="{tip}"></td>'
            rows += f"<tr><th>{escape(visible(layer))}</th>{cells}</tr>"
        return f"<table><tbody>{rows}</tbody><thead><tr><th></th>{head}</tr></thead></table>"

    def figure(self, *, dark: bool = False) -> Figure:
        """Return the picture, with layers from the bottom upwards."""
        _, ink = DARK if dark else LIGHT
        labels = [label if len(label) < 18 else label[:16] + "…" for label in self.labels()]
        names = [visible(layer) for layer in self.layers]
        parts = self._parts()
        left = 0.25 + max(map(text_width, names)) * _SIZE
        below = 0.15 + max(map(text_width, labels), default=0.0) * _SIZE
        wide, high = max(_CELL * parts[0].stop, 2.0), max(_CELL * len(names), 0.5)
        one, foot = below + high + 0.15, 0.8
        width, height = left + wide + 0.3, len(parts) * one + foot
        figure = new_figure(width, height, dark=dark)
        style: dict[str, Any] = {"size": _SIZE, "color": [c / 255 for c in ink], "family": fonts(), "parse_math": False}
        for place, part in enumerate(parts):
            share = (part.stop - part.start) / parts[0].stop
            bottom = (height - (place + 1) * one + below) / height
            axes = figure.add_axes((left / width, bottom, wide * share / width, high / height))
            self._draw(axes, part, dark)
            axes.set_xticks(range(part.stop - part.start), labels[part], rotation=90, **style)
            axes.set_yticks(range(len(names)), names, **style)
            axes.tick_params(length=0)
            axes.spines[:].set(color="0.55", linewidth=0.6)
        box = (left / width, 0.44 / height, min(1.8, wide) / width, 0.1 / height)
        color_bar(figure, box, self.scale, dark=dark)
        return figure

    def _draw(self, axes: Any, part: slice, dark: bool) -> None:
        background, _ = DARK if dark else LIGHT
        axes.imshow(
            self.scores[:, part].numpy(), cmap=color_map(background, dark=dark), vmin=-self.scale, vmax=self.scale,
            aspect="auto", origin="lower", interpolation="nearest",
        )  # fmt: skip
