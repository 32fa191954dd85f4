"""Several pictures as one: those of each input of a model that takes images and text, for instance."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from .picture import DARK, LIGHT, Picture, fonts, headings, new_figure, save_figure, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEAD, _DPI = 0.34, 200


def several(pictures: Sequence[Picture], *, titles: str | Sequence[str] | None = None) -> Several:
    """Return pictures below each other, each with its own colors.

    Args:
        pictures: any that this package made.
        titles: one for each.

    Raises:
        TypeError: they are no pictures, or titles are no texts.
        ValueError: there are none, or more or fewer titles.
    """
    if not all(isinstance(picture, Picture) for picture in pictures):
        raise TypeError(f"pictures must be those that lxt_compose.heatmap made, got {pictures!r}")
    if not pictures:
        raise ValueError("there are no pictures")
    return Several(tuple(pictures), tuple(headings(titles, len(pictures))))


@dataclass(frozen=True, eq=False, repr=False)
class Several(Picture):
    """Pictures below each other; made by :func:`several`. They can be counted, indexed and iterated over."""

    pictures: tuple[Picture, ...]
    titles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> Picture:
        return self.pictures[place]

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.pictures)

    def __repr__(self) -> str:
        return f"<Several: {', '.join(map(repr, self.pictures))}>"

    def __str__(self) -> str:
        return "\n".join(f"{visible(title)}\n{picture}" for title, picture in zip(self.titles, self, strict=True))

    def html(self) -> str:
        """Return the pieces of HTML below each other."""
        pairs = zip(self.titles, self.pictures, strict=True)
        return "".join(f"<div><h2>{escape(visible(title))}</h2>{one.html()}</div>" for title, one in pairs)

    def figure(self, *, dark: bool = False) -> Figure:
        """Return the pictures in one figure, as images of 200 dots per inch."""
        from matplotlib.image import imread

        figures = [picture.figure(dark=dark) for picture in self.pictures]
        sizes = [figure.get_size_inches() for figure in figures]
        width = max(size[0] for size in sizes)
        height = sum(size[1] + _HEAD for size in sizes)
        whole, top = new_figure(width, height, dark=dark), height
        ink = [c / 255 for c in (DARK if dark else LIGHT)[1]]
        for title, figure, (wide, high) in zip(self.titles, figures, sizes, strict=True):
            memory = io.BytesIO()
            save_figure(figure, memory, dpi=_DPI, form="png")
            memory.seek(0)
            whole.text(
                0.25 / width, (top - 0.25) / height, visible(title), size=10.5, weight="bold", color=ink,
                family=fonts(), parse_math=False,
            )  # fmt: skip
            top -= _HEAD + high
            axes = whole.add_axes((0, top / height, wide / width, high / height))
            axes.imshow(imread(memory), aspect="auto", interpolation="nearest")
            axes.set_axis_off()
        return whole
