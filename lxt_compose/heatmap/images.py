"""Relevance of pixels: a diverging map centred at 0, over the image if there is one, in a grid with titles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .colours import AGAINST, FOR, colour_map, scale_of
from .picture import DARK, LIGHT, STYLE, Picture, colour_bar, fonts, new_figure, png_of, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL, _HEAD, _FOOT = 1.9, 0.34, 0.75
_LARGEST_GRID = 64
_STYLE = """
.lxt-image img{max-width:100%}.lxt-image .dark{display:none}
@media (prefers-color-scheme:dark){.lxt-image .light{display:none}.lxt-image .dark{display:inline}}
"""


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
    """Images coloured by relevance: red speaks for the target, blue against it, white (or the image) is 0.

    Args:
        relevance: [height, width], [channels, height, width] (1, 3 or 4 channels, which are summed), [n, height,
            width] or [n, channels, height, width]; any unit.
        image: what was explained, of the same size or any other: it is drawn in grey under the relevance. Its values
            are stretched from the least to the largest.
        titles: one for each image.
        columns: of the grid; by default as many as make it square.
        limit: the relevance of full colour; by default the largest absolute one of each image.
        shared: whether all images share one scale.
        strength: how much the relevance covers the image at full colour, from 0 to 1.

    Raises:
        ValueError: shapes do not fit, or a value is not finite.
    """
    maps = _maps(relevance, "relevance")
    below = None if image is None else _maps(image, "image", mean=True)
    heads = [titles] if isinstance(titles, str) else list(titles or [""] * len(maps))
    if len(heads) != len(maps) or (below is not None and len(below) != len(maps)):
        raise ValueError(
            f"{len(maps)} maps, {len(heads)} titles and {'no' if below is None else len(below)} images do not fit"
        )
    if len(maps) > _LARGEST_GRID:
        raise ValueError(f"a grid shows at most {_LARGEST_GRID} images, got {len(maps)}; pass some of them")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength!r}")
    if columns is not None and columns < 1:
        raise ValueError(f"a grid has at least one column, got {columns!r}")
    if shared and limit is None:
        limit = _limit(maps)
    scales = tuple(limit if limit is not None else _limit(one) for one in maps)
    return ImageHeatmap(maps, below, tuple(heads), scales, columns or math.ceil(math.sqrt(len(maps))), strength)


def _maps(values: Any, what: str, *, mean: bool = False) -> Tensor:
    """[n, height, width] of whatever was given; channels are added up, or averaged for images to look at."""
    found = torch.as_tensor(values).detach().cpu().double()
    if found.dim() == 2 or (found.dim() == 3 and found.shape[0] in (1, 3, 4)):
        found = found[None]
    if found.dim() == 4:
        found = found.mean(1) if mean else found.sum(1)
    if found.dim() != 3 or not found.numel():
        raise ValueError(f"{what} must be [height, width], [(n,) (channels,) height, width], got {list(found.shape)}")
    if not torch.isfinite(found).all():
        raise ValueError(f"{what} holds values that are not finite")
    return found


def _limit(values: Tensor) -> float:
    return scale_of([float(values.abs().max())])


@dataclass(frozen=True, eq=False, repr=False)
class ImageHeatmap(Picture):
    """A grid of images with their relevance; made by :func:`image`. ``scales`` is the relevance of full colour."""

    maps: Tensor
    below: Tensor | None
    titles: tuple[str, ...]
    scales: tuple[float, ...]
    columns: int
    strength: float

    def __repr__(self) -> str:
        return f"<ImageHeatmap: {len(self.maps)} x {list(self.maps.shape[1:])}>"

    def figure(self, *, dark: bool = False) -> Figure:
        """The grid, with one bar of colours."""
        ink = [c / 255 for c in (DARK if dark else LIGHT)[1]]
        rows, columns = math.ceil(len(self.maps) / self.columns), min(self.columns, len(self.maps))
        ratio = min(max(self.maps.shape[1] / self.maps.shape[2], 0.2), 4.0)
        lines = max(title.count("\n") + 1 for title in self.titles) if any(self.titles) else 0
        head = _HEAD * lines * 0.62 + 0.1
        width, cell = columns * _CELL + 0.3, _CELL * ratio
        height = rows * (cell + head) + _FOOT
        width = max(width, 3.2)
        figure = new_figure(width, height, dark=dark)
        left = (width - columns * _CELL) / 2
        for place, values in enumerate(self.maps):
            row, column = divmod(place, columns)
            bottom = height - (row + 1) * (cell + head)
            at = (left + column * _CELL + 0.05) / width, (bottom + 0.03) / height
            axes = figure.add_axes((*at, (_CELL - 0.1) / width, cell / height))
            self._draw(axes, place, values, dark)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color="0.55", linewidth=0.6)
            title = "\n".join(map(visible, self.titles[place].split("\n")))
            axes.set_title(title, size=9.5, color=ink, pad=3, family=fonts(), parse_math=False)
        long = min(2.0, width - 1.2)
        box = ((width - long) / 2 / width, 0.44 / height, long / width, 0.11 / height)
        scale = self.scales[0] if len(set(self.scales)) == 1 else None
        colour_bar(figure, box, scale, dark=dark, deep=self.below is None)
        return figure

    def _draw(self, axes: Any, place: int, values: Tensor, dark: bool) -> None:
        background, _ = DARK if dark else LIGHT
        relative = values / self.scales[place]
        if self.below is None:
            colours = colour_map(background, dark=dark)
            axes.imshow(relative.numpy(), cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
            return
        below = self.below[place]
        low, high = float(below.min()), float(below.max())
        grey = (below - low) / ((high - low) or 1.0)
        grey = 0.1 + 0.35 * grey if dark else 0.72 + 0.28 * grey  # pale, so that the colours stand out
        cover = (relative.abs().clamp(max=1) ** 0.8 * self.strength)[..., None]
        colour = torch.where(relative[..., None] > 0, torch.tensor(FOR), torch.tensor(AGAINST)) / 255
        axes.imshow((grey[..., None] * (1 - cover) + colour * cover).numpy(), interpolation="nearest")

    def html(self) -> str:
        """The grid as pictures inside of the HTML: one for light, one for dark backgrounds."""
        alt = escape("relevance of images: " + "; ".join(filter(None, self.titles)), quote=True)
        pictures = "".join(
            f'<img class="{kind}" alt="{alt}" src="{png_of(self.figure(dark=kind == "dark"))}">'
            for kind in ("light", "dark")
        )
        return f'<div class="lxt lxt-image"><style>{STYLE}{_STYLE}</style>{pictures}</div>'
