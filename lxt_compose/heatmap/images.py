"""Relevance of pixels: a diverging map centered at 0, over the image if there is one, in a grid with titles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .colors import AGAINST, FOR, color_map, scale_of
from .picture import (
    DARK,
    LIGHT,
    Picture,
    color_bar,
    drawn,
    fonts,
    headings,
    new_figure,
    numbers_of,
    text_width,
    visible,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# In inches, but for the size of titles in points, and how thin a picture may be.
_CELL, _LINE, _FOOT, _SIZE, _THIN = 1.9, 0.17, 0.75, 9.5, 0.1
_LARGEST_GRID, _LINES = 64, 4


def image(
    relevance: Any,
    *,
    image: Any = None,
    titles: str | Sequence[str] | None = None,
    columns: int | None = None,
    limit: float | None = None,
    shared: bool = False,
    strength: float = 1.0,
) -> ImageHeatmap:
    """Return images colored by relevance: red speaks for the target, blue against it, white (or the image) is 0.

    Args:
        relevance: [height, width], [n, height, width] or [n, channels, height, width], channels are summed; any unit.
            Three dimensions that begin with 1, 3 or 4 are one image's channels, unless there are as many images or
            titles.
        image: the explained image, drawn in gray under the relevance, its values stretched from the least to the
            largest. Its size may be another, if relevance is that of patches: the smaller one is enlarged.
        titles: one for each image.
        columns: of the grid; by default as many as make it about square.
        limit: the relevance of full color; by default the largest absolute one of each image.
        shared: whether all images share one scale.
        strength: how much the relevance covers the image at full color, from 0 to 1.

    Raises:
        TypeError: titles are no texts, or values no numbers.
        ValueError: shapes do not fit, or a value is not finite.
    """
    below = None if image is None else _maps(image, "image", mean=True)
    count = len(below) if below is not None else 1 if titles is None or isinstance(titles, str) else len(titles)
    maps = _maps(relevance, "relevance", count=count)
    if below is not None and len(below) != len(maps):
        raise ValueError(
            f"relevance of {len(maps)} image{'s' * (len(maps) != 1)} does not fit {len(below)}, of shape "
            f"{list(torch.as_tensor(image).shape)}; channels come before height and width"
        )
    if len(maps) > _LARGEST_GRID:
        raise ValueError(f"a grid shows at most {_LARGEST_GRID} images, got {len(maps)}; pass some of them")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength!r}")
    if columns is not None and (not isinstance(columns, int) or columns < 1):
        raise ValueError(f"a grid has a whole number of columns from 1 on, got {columns!r}")
    limit = None if limit is None else scale_of((), limit)
    if shared and limit is None:
        limit = _limit(maps)
    scales = tuple(limit if limit is not None else _limit(one) for one in maps)
    high, wide = (maps if below is None else below).shape[1:]
    columns = columns or math.ceil(math.sqrt(len(maps) * _clipped(high / wide)))
    return ImageHeatmap(maps, below, tuple(headings(titles, len(maps))), scales, columns, strength)


def _maps(values: Any, what: str, *, mean: bool = False, count: int = 1) -> Tensor:
    """Return [n, height, width] of whatever was given; channels are added up, or averaged for images to look at.

    ``count`` is the expected number of images, which tells n maps from one of n channels.
    """
    found = numbers_of(values, what)
    if found.dim() == 2 or (found.dim() == 3 and found.shape[0] in (1, 3, 4) and found.shape[0] != count):
        found = found[None]
    if found.dim() == 4:
        found = found.mean(1) if mean else found.sum(1)
    if found.dim() != 3 or not found.numel():
        raise ValueError(f"{what} must be [height, width], [(n,) (channels,) height, width], got {list(found.shape)}")
    if not torch.isfinite(found).all():
        raise ValueError(f"{what} holds values that are not finite")
    return found


def _clipped(ratio: float) -> float:
    """Return height over width of the place for a picture; a thinner picture is stretched."""
    return min(max(ratio, _THIN), 1 / _THIN)


def _enlarged(*pictures: Tensor) -> list[Tensor]:
    """Return pictures [height, width] of one size: the largest height and width of all, pixels repeated."""
    size = [max(sizes) for sizes in zip(*(picture.shape for picture in pictures), strict=True)]
    return [F.interpolate(picture[None, None], size, mode="nearest-exact")[0, 0] for picture in pictures]


def title_lines(title: str, width: float) -> list[str]:
    """Return the lines of a title that fit into this width; after a few lines it ends in an ellipsis."""
    lines: list[str] = []
    for given in title.split("\n") if title else ():
        line = ""
        for word in visible(given).split(" "):
            longer = f"{line} {word}" if line else word
            if line and text_width(longer) * _SIZE > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    lines = [*lines[: _LINES - 1], lines[_LINES - 1] + "…"] if len(lines) > _LINES else lines
    return [_cut(line, width) for line in lines]


def _cut(line: str, width: float) -> str:
    while len(line) > 1 and text_width(line) * _SIZE > width:
        line = line.removesuffix("…")[:-1] + "…"
    return line


def _limit(values: Tensor) -> float:
    return scale_of([float(values.abs().max())])


@dataclass(frozen=True, eq=False, repr=False)
class ImageHeatmap(Picture):
    """A grid of images with their relevance; made by :func:`image`. ``scales`` is the relevance of full color."""

    maps: Tensor
    below: Tensor | None
    titles: tuple[str, ...]
    scales: tuple[float, ...]
    columns: int
    strength: float

    def __repr__(self) -> str:
        return f"<ImageHeatmap: {len(self.maps)} x {list(self.maps.shape[1:])}>"

    def figure(self, *, dark: bool = False) -> Figure:
        """Return the grid, with one bar of colors."""
        ink = [c / 255 for c in (DARK if dark else LIGHT)[1]]
        rows, columns = math.ceil(len(self.maps) / self.columns), min(self.columns, len(self.maps))
        wide, cell = self._cell()
        titles = [title_lines(title, wide) for title in self.titles]
        head = _LINE * max(map(len, titles)) + 0.12
        width, height = max(columns * wide + 0.3, 3.2), rows * (cell + head) + _FOOT
        figure = new_figure(width, height, dark=dark)
        left = (width - columns * wide) / 2
        for place, values in enumerate(self.maps):
            row, column = divmod(place, columns)
            bottom = height - (row + 1) * (cell + head)
            at = (left + column * wide + 0.05) / width, (bottom + 0.03) / height
            axes = figure.add_axes((*at, (wide - 0.1) / width, cell / height))
            self._draw(axes, place, values, dark)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color="0.55", linewidth=0.6)
            axes.set_title(
                "\n".join(titles[place]),
                size=_SIZE,
                color=ink,
                pad=3,
                family=fonts(),
                linespacing=1.1,
                parse_math=False,
            )
        long = min(2.0, width - 1.2)
        box = ((width - long) / 2 / width, 0.44 / height, long / width, 0.11 / height)
        scale = self.scales[0] if len(set(self.scales)) == 1 else None
        color_bar(figure, box, scale, dark=dark, deep=self.below is None)
        return figure

    def _cell(self) -> tuple[float, float]:
        """Return width and height of one picture in inches: of the same area, whatever the shape."""
        side = _clipped(self._ratio()) ** 0.5
        return _CELL / side, _CELL * side

    def _ratio(self) -> float:
        """Return height over width of what is drawn."""
        height, width = (self.maps if self.below is None else self.below).shape[1:]
        return height / width

    def _draw(self, axes: Any, place: int, values: Tensor, dark: bool) -> None:
        background, _ = DARK if dark else LIGHT
        relative = values / self.scales[place]
        aspect = "equal" if _clipped(self._ratio()) == self._ratio() else "auto"
        if self.below is None:
            colors = color_map(background, dark=dark)
            axes.imshow(relative.numpy(), cmap=colors, vmin=-1, vmax=1, aspect=aspect, interpolation="nearest")
            return
        below, relative = _enlarged(self.below[place], relative)
        low, high = float(below.min()), float(below.max())
        gray = (below - low) / ((high - low) or 1.0)
        gray = 0.1 + 0.35 * gray if dark else 0.72 + 0.28 * gray  # pale, so that the colors stand out
        cover = (relative.abs().clamp(max=1) ** 0.8 * self.strength)[..., None]
        color = torch.where(relative[..., None] > 0, torch.tensor(FOR), torch.tensor(AGAINST)) / 255
        mixed = gray[..., None] * (1 - cover) + color * cover
        axes.imshow(mixed.numpy(), aspect=aspect, interpolation="nearest")

    def html(self) -> str:
        """Return the grid as pictures inside of the HTML: one for light, one for dark backgrounds."""
        return drawn(self, "relevance of images", self.titles)
