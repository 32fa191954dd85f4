"""Images and sounds on a page: their pictures, and the relevance of each place in two bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..extras import needed
from ..heatmap.picture import visible
from ..heatmap.tokens import Piece
from .grids import Grid

_LONGEST = 768
_MANY, _SPECIAL, _STEPS = 8, 3, 2**15 - 1


def grid_data(grid: Grid) -> dict[str, Any]:
    """Return name, kind, size and picture of an image or a sound."""
    found: dict[str, Any] = {
        "name": visible(grid.name), "kind": grid.kind, "rows": grid.rows, "columns": grid.columns,
    }  # fmt: skip
    if grid.seconds is not None:
        found["seconds"] = grid.seconds
    if grid.picture is not None:
        found["height"], found["width"] = grid.picture.shape[:2]
        found["picture"] = _png(grid)
    return found


def _png(grid: Grid) -> str:
    """Return a picture as a data address; a spectrogram is stretched to be seen.

    Raises:
        ImportError: Pillow is not installed.
    """
    Image = needed("PIL.Image", "pages with images or sounds need Pillow: pip install 'lxt-compose[viz]'")
    assert grid.picture is not None
    image = Image.fromarray(grid.picture.contiguous().numpy())
    image.thumbnail((_LONGEST, _LONGEST))
    memory = io.BytesIO()
    image.save(memory, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def packed_cells(rows: Tensor) -> dict[str, Any]:
    """Return the relevance of places, [rows, places], in 32767 steps to each side of 0, and the value of the last.

    Empty if there are no places.
    """
    if not rows.shape[1]:
        return {}
    most = rows.abs().amax(1).double()
    steps = (rows.double() / torch.where(most > 0, most, 1)[:, None] * _STEPS).round().to(torch.int16)
    return {
        "cells": base64.b64encode(steps.contiguous().numpy().astype("<i2").tobytes()).decode("ascii"),
        "most_of_cells": floats(most),
    }


def floats(values: Tensor) -> str:
    """Return numbers as text: base64 of little-endian floats of 32 bits."""
    return base64.b64encode(values.float().contiguous().numpy().astype("<f4").tobytes()).decode("ascii")


def folded(pieces: Sequence[Piece]) -> list[Piece]:
    """Return pieces with many equal ones in a row, such as those for an image, joined to one."""
    found, at = list[Piece](), 0
    while at < len(pieces):
        piece, stop = pieces[at], at + 1
        while stop < len(pieces) and (pieces[stop].text, pieces[stop].special) == (piece.text, piece.special):
            stop += 1
        count = stop - at
        if count >= (_SPECIAL if piece.special else _MANY) and not piece.blank:
            tokens = tuple(token for one in pieces[at:stop] for token in one.tokens)
            found.append(Piece(f"{piece.text} \u00d7 {count}", tokens, piece.space, piece.lines, piece.special))
        else:
            found += pieces[at:stop]
        at = stop
    return found
