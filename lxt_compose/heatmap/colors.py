"""Colors: one diverging map, symmetric around 0, legible on light and dark backgrounds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

Color = tuple[int, int, int]

FOR: Color = (214, 47, 39)
"""The color of full positive relevance: red, "speaks for"."""
AGAINST: Color = (38, 102, 207)
"""The color of full negative relevance: blue, "speaks against"."""
_FULL_FOR: tuple[Color, Color] = ((110, 6, 18), (255, 158, 138))
_FULL_AGAINST: tuple[Color, Color] = ((10, 44, 110), (140, 190, 255))
STRONGEST = 0.72
"""The opacity of the color at full relevance, at which text on it can be read."""


def scale_of(values: Iterable[float], limit: float | None = None) -> float:
    """Return the value that gets full color: the largest absolute one, or `limit`; 1 if all are 0.

    Raises:
        ValueError: a value is not finite, or the limit is not positive.
    """
    if limit is not None:
        if not (isinstance(limit, (int, float)) and math.isfinite(limit) and limit > 0):
            raise ValueError(f"the limit of the colors must be positive and finite, got {limit!r}")
        return float(limit)
    largest = 0.0
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"scores must be finite, got {value!r}")
        largest = max(largest, abs(value))
    return largest or 1.0


def strength(value: float, scale: float) -> float:
    """Return the value relative to the scale, from -1 to 1."""
    return max(-1.0, min(1.0, value / scale))


def over(background: Color, value: float) -> Color:
    """Return the color of a value from -1 to 1 on a background."""
    color, alpha = (FOR if value > 0 else AGAINST), abs(value) * STRONGEST
    mixed = [round(b + (c - b) * alpha) for b, c in zip(background, color, strict=True)]
    return mixed[0], mixed[1], mixed[2]


def luminance(color: Color) -> float:
    """Return the relative luminance from 0 (black) to 1 (white), as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: Color, b: Color) -> float:
    """Return the contrast of two colors from 1 to 21, as WCAG 2 defines it; text needs 4.5."""
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def color_map(background: Color, *, dark: bool, deep: bool = True) -> Any:
    """Return a map of matplotlib: from blue through the background in the middle to red.

    Lightness falls (on dark: rises) equally to both sides. ``deep`` adds a deeper shade at the ends, for more contrast.
    """
    from matplotlib.colors import LinearSegmentedColormap

    stops: tuple[Color, ...] = (AGAINST, background, FOR)
    places: tuple[float, ...] = (0.0, 0.5, 1.0)
    if deep:
        stops, places = (_FULL_AGAINST[dark], *stops, _FULL_FOR[dark]), (0.0, 0.2, 0.5, 0.8, 1.0)
    colors = [(at, tuple(c / 255 for c in stop)) for at, stop in zip(places, stops, strict=True)]
    return LinearSegmentedColormap.from_list("relevance", colors, N=511)
