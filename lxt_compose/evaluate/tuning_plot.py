"""The scores of tuning as curves over an argument, or as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..heatmap.picture import new_figure
from .candidates import Candidate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LINES = 8


def draw(
    rows: Sequence[Mapping[str, Any]],
    candidates: Sequence[Candidate],
    held_out: float,
    score: str,
    over: str | None,
    ax: Axes | None,
) -> Axes:
    """Draw the rows of a tuning's table; see :meth:`Tuning.plot`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no candidate has an argument of this name that is a number.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    numbers = _numbers(candidates)
    if over is not None and over not in numbers:
        raise ValueError(
            f"no candidate has an argument {over!r} with numbers; there are {', '.join(numbers) or 'none'}"
        )
    over = next(iter(numbers), None) if over is None else over
    rows = [row for row in rows if not row["failed"]]
    if ax is None:
        ax = new_figure(7.2, 4.6, dark=False).add_subplot()
        ax.figure.subplots_adjust(top=0.78, left=0.3 if over is None else 0.12, right=0.97)
    if over is None:
        _bars(ax, rows, score)
    else:
        _curves(ax, rows, by_name, over, score)
    line = ax.axvline if over is None else ax.axhline
    line(held_out, color="0.5", linestyle="--", linewidth=1, label="chosen, held out")
    ax.legend(fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2)
    return ax


def _numbers(candidates: Sequence[Candidate]) -> dict[str, set[float]]:
    """Return the arguments that have several numbers."""
    found: dict[str, set[float]] = {}
    for candidate in candidates:
        for name, value in candidate.arguments.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found.setdefault(name, set()).add(value)
    return {name: values for name, values in found.items() if len(values) > 1}


def _bars(ax: Axes, rows: Sequence[Mapping[str, Any]], score: str) -> None:
    rows = rows[::-1]
    scores = [row["score"] for row in rows]
    ends = [[s - row["low"] for s, row in zip(scores, rows, strict=True)],
            [row["high"] - s for s, row in zip(scores, rows, strict=True)]]  # fmt: skip
    ax.errorbar(scores, range(len(rows)), xerr=ends, fmt="o", capsize=3)
    ax.set_yticks(range(len(rows)), [row["candidate"] for row in rows])
    ax.set_xlabel(score)


def _curves(
    ax: Axes, rows: Sequence[Mapping[str, Any]], by_name: Mapping[str, Candidate], over: str, score: str
) -> None:
    """Draw a line for each combination of the other arguments, the best first, and one for each candidate without.

    The first line has its interval.
    """
    lines: dict[str, list[Mapping[str, Any]]] = {}
    flat = []
    for row in rows:
        candidate = by_name[row["candidate"]]
        if over not in candidate.arguments:
            flat.append(row)
            continue
        others = ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                           for name, value in candidate.arguments.items() if name != over)  # fmt: skip
        lines.setdefault(f"{candidate.builder}{others and f', {others}'}", []).append(row)
    for place, (label, points) in enumerate(list(lines.items())[:_MOST_LINES]):
        points = sorted(points, key=lambda row: row[over])
        x, y = [row[over] for row in points], [row["score"] for row in points]
        (line,) = ax.plot(x, y, marker="o", markersize=4, label=label)
        if place == 0:  # lines share samples and noise, which several bands would hide
            low, high = ([row[end] for row in points] for end in ("low", "high"))
            ax.fill_between(x, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    for row in flat[: max(0, _MOST_LINES - len(lines))]:
        ax.axhline(row["score"], linewidth=1, linestyle=":", color="0.3")
        ax.annotate(row["candidate"], (1, row["score"]), xycoords=("axes fraction", "data"), fontsize="x-small",
                    ha="right", va="bottom")  # fmt: skip
    ax.set_xlabel(over)
    ax.set_ylabel(score)
