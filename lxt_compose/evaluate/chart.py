"""Curves of a flip as a small picture for notebooks: SVG, for light and dark backgrounds."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from torch import Tensor

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _EDGE, _BELOW = 460, 200, 66, 120, 12, 34
_COLORS = ("#2f6fd6", "#d62f27")


def chart(fractions: Tensor, curves: Mapping[str, Tensor]) -> str:
    """Return curves over the part that was removed, each with its name at the right.

    Args:
        fractions: [steps + 1], from 0 to 1.
        curves: at most two of [steps + 1], by name; values that are not finite are left out.
    """
    values = [float(value) for curve in curves.values() for value in curve if value.isfinite()]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5

    def place(part: float, value: float) -> tuple[float, float]:
        across = _LEFT + part * (_WIDTH - _LEFT - _RIGHT)
        return round(across, 1), round(_HEIGHT - _BELOW - (value - low) / (high - low) * (_HEIGHT - _BELOW - _EDGE), 1)

    parts, (right, top), (left, bottom) = [], place(1, high), place(0, low)
    for height, value in ((bottom, low), (top, high)):
        parts.append(f'<text x="{left - 6}" y="{height + 4}" text-anchor="end">{value:.4g}</text>')
    labels = (("0 %", left, "start"), ("removed", (left + right) / 2, "middle"), ("100 %", right, "end"))
    parts += [f'<text x="{at}" y="{bottom + 18}" text-anchor="{anchor}">{text}</text>' for text, at, anchor in labels]
    for number, ((name, curve), color) in enumerate(zip(curves.items(), _COLORS, strict=False)):
        pairs = zip(fractions.tolist(), curve.tolist(), strict=True)
        points = " ".join("{},{}".format(*place(part, value)) for part, value in pairs if value == value)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{right + 8}" y="{top + 12 + 18 * number}" fill="{color}">{escape(name)}</text>')
    frame = f'<path d="M{left},{top}V{bottom}H{right}" fill="none" stroke="currentColor" opacity=".4"/>'
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" style="width:100%;max-width:{_WIDTH}px" fill="currentColor" '
        f'font-family="sans-serif" font-size="12">{frame}{"".join(parts)}</svg>'
    )
