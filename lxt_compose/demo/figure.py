"""A grid of pictures with titles: inputs and their relevance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLORS = "RdBu_r"
CELL, LEFT, TOP, BOTTOM = 1.25, 1.15, 0.95, 0.72  # inches: one picture, and the margins


@dataclass(frozen=True)
class Row:
    """One row of pictures, each [height, width]: relevance, drawn red for and blue against, or scans, drawn in gray.

    A picture [height, width, 3] is a photograph in either kind of row.
    """

    title: str
    pictures: Sequence[Tensor]
    is_relevance: bool = True


def draw(rows: list[Row], headings: list[str], path: Path, title: str) -> None:
    """Write the rows as a PNG; each relevance picture has its own scale, symmetric around 0."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Figure and canvas by hand: pyplot would keep the figure alive, and choose a backend for the whole process.
    width, height = LEFT + CELL * len(headings) + 0.15, TOP + CELL * len(rows) + BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    middle = (LEFT + width - 0.15) / 2 / width
    figure.suptitle(title, x=middle, y=1 - 0.25 / height, size=15)
    edges = {"left": LEFT / width, "right": 1 - 0.15 / width, "top": 1 - TOP / height, "bottom": BOTTOM / height}
    grid = figure.add_gridspec(len(rows), len(headings), **edges, wspace=0.08, hspace=0.08)
    for at_row, row in enumerate(rows):
        for column, picture in enumerate(row.pictures):
            axes = figure.add_subplot(grid[at_row, column])
            axes.imshow(picture.numpy(), interpolation="nearest", **_colors(picture, row.is_relevance))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color="0.6", linewidth=0.6)
            if at_row == 0:
                axes.set_title(headings[column], fontsize=10, pad=6)
            if column == 0:
                axes.set_ylabel(row.title, rotation=0, ha="right", va="center", fontsize=11, labelpad=10)
    _color_bar(figure, (middle - 1.6 / width, 0.42 / height, 3.2 / width, 0.13 / height))
    figure.savefig(path, dpi=150)


def _colors(picture: Tensor, is_relevance: bool) -> dict[str, Any]:
    """Return how a picture is colored; a photograph has its own colors."""
    if picture.dim() == 3:
        return {}
    if not is_relevance:
        return {"cmap": "gray_r"}
    scale = max(picture.abs().max().item(), 1e-12)
    return {"cmap": COLORS, "vmin": -scale, "vmax": scale}


def _color_bar(figure: "Figure", place: tuple[float, float, float, float]) -> None:
    """Draw a bar below the pictures that shows what the colors mean."""
    from matplotlib.cm import ScalarMappable

    axes = figure.add_axes(place)
    bar = figure.colorbar(ScalarMappable(cmap=COLORS), cax=axes, orientation="horizontal", ticks=[0, 0.5, 1])
    bar.set_ticklabels(["speaks against", "0", "speaks for"], fontsize=10)
    bar.outline.set_linewidth(0.5)
