"""Images as they are, in gray or in color, in a grid with titles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .images import title_lines
from .picture import DARK, LIGHT, Picture, drawn, fonts, headings, new_figure, numbers_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In inches, but for the size of titles in points.
_CELL, _LINE, _PAD, _SIZE = 1.6, 0.17, 0.12, 9.0
_LARGEST_GRID = 144


def image_grid(images: Any, *, titles: str | Sequence[str] | None = None, columns: int | None = None) -> ImageGrid:
    """Return a picture of images.

    Args:
        images: [n, channels, height, width], 1 channel for gray or 3 for color, from 0 to 1; what is beyond is clipped.
        titles: one for each image.
        columns: of the grid; by default as many as make it about square.

    Raises:
        TypeError: titles are no texts, or values no numbers.
        ValueError: the shape is another, there is no image, or there are more than fit.
    """
    found = numbers_of(images, "images")
    if found.dim() != 4 or found.shape[1] not in (1, 3) or not found.numel():
        raise ValueError(f"images must be [n, 1 or 3 channels, height, width], got {list(found.shape)}")
    if len(found) > _LARGEST_GRID:
        raise ValueError(f"a grid shows at most {_LARGEST_GRID} images, got {len(found)}; pass some of them")
    if columns is not None and (not isinstance(columns, int) or columns < 1):
        raise ValueError(f"a grid has a whole number of columns from 1 on, got {columns!r}")
    return ImageGrid(found.clamp(0, 1), tuple(headings(titles, len(found))), columns or math.ceil(len(found) ** 0.5))


@dataclass(frozen=True, eq=False, repr=False)
class ImageGrid(Picture):
    """Images in a grid; made by :func:`image_grid`."""

    images: Tensor
    titles: tuple[str, ...]
    columns: int

    title = "images"

    def __repr__(self) -> str:
        return f"<ImageGrid: {len(self.images)} x {list(self.images.shape[1:])}>"

    def html(self) -> str:
        """Return the grid as pictures inside of the HTML: one for light, one for dark backgrounds."""
        return drawn(self, "images", self.titles)

    def figure(self, *, dark: bool = False) -> Figure:
        """Return the grid."""
        ink = [c / 255 for c in (DARK if dark else LIGHT)[1]]
        rows, columns = math.ceil(len(self.images) / self.columns), min(self.columns, len(self.images))
        ratio = self.images.shape[2] / self.images.shape[3]
        wide, high = _CELL, _CELL * min(max(ratio, 0.2), 5.0)
        titles = [title_lines(title, wide) for title in self.titles]
        head = _LINE * max(map(len, titles)) + 0.1
        width, height = columns * (wide + _PAD) + _PAD, rows * (high + head) + _PAD
        figure = new_figure(width, height, dark=dark)
        for place, values in enumerate(self.images):
            row, column = divmod(place, columns)
            left, bottom = _PAD + column * (wide + _PAD), height - (row + 1) * (high + head)
            axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
            shown = values[0].numpy() if len(values) == 1 else values.permute(1, 2, 0).numpy()
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color="0.55", linewidth=0.6)
            text = "\n".join(titles[place])
            axes.set_title(text, size=_SIZE, color=ink, pad=3, family=fonts(), linespacing=1.1, parse_math=False)
        return figure
