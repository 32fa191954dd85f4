"""Exports of explained answers: tables, arrays with named dimensions, plain data, and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..extras import needed
from ..heatmap.colors import color_map
from ..heatmap.picture import LIGHT, fonts, new_figure, visible
from .answer import START, Answer

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]


def records(answer: Answer, sample: int) -> Iterator[dict[str, Any]]:
    """Yield one row of a table for each span and each token before its end."""
    sources = answer.sources
    before = len(sources) - answer.length
    for row, span in enumerate(answer.spans):
        scores = answer.relevance[row].tolist()
        for place in range(before + span.stop - 1):
            yield {
                "sample": sample, "target": span.name, "start": span.start, "stop": span.stop, "position": place,
                "side": sources.sides[place], "role": sources.roles[place] if sources.roles else "",
                "special": sources.special[place], "token": sources.labels[place], "relevance": scores[place],
            }  # fmt: skip


def dataframe(answers: Sequence[Answer]) -> DataFrame:
    """Return a table of all answers; needs pandas.

    Raises:
        ImportError: pandas is not installed.
    """
    pandas = needed("pandas", "to_dataframe() needs pandas: pip install pandas")
    return pandas.DataFrame(row for sample, answer in enumerate(answers) for row in records(answer, sample))


def dataset(answer: Answer) -> Any:
    """Return a Dataset of xarray; needs xarray.

    Raises:
        ImportError: xarray is not installed.
    """
    xarray = needed("xarray", "to_xarray() needs xarray: pip install 'lxt-compose[tables]'")
    sources, sums = answer.sources, answer.sums()
    table = [[float(x) for x in amount] for amount in sums.values()]
    return xarray.Dataset(
        {
            "relevance": (("target", "source"), answer.relevance.numpy()),
            "score": ("target", answer.scores.numpy()),
            "sums": (("group", "target"), table),
        },
        {
            "target": [span.name for span in answer.spans],
            "start": ("target", [span.start for span in answer.spans]),
            "stop": ("target", [span.stop for span in answer.spans]),
            "token": ("source", list(sources.labels)),
            "side": ("source", list(sources.sides)),
            "role": ("source", list(sources.roles or [""] * len(sources))),
            "group": list(sums),
        },
        {"quantity": answer.quantity, "ran": answer.ran},
    )


def plain(answer: Answer) -> dict[str, Any]:
    """Return an answer as dictionaries, lists, texts and numbers, ready for JSON.

    ``source`` and ``target`` are the texts of the tokens of prompt and answer (tokens that only together are a
    character all have it), ``source_attributions`` [rows][source] and ``target_attributions`` [rows][target] the
    relevance on them, in the order of ``rows``. ``boxes`` [rows] are those of detected things: left, top, right and
    bottom, as shares of the image.
    """
    sources, known = answer.sources, answer.predictions
    split = len(sources) - answer.length
    sums = {name: amount.tolist() for name, amount in answer.sums().items()}
    data: dict[str, Any] = {
        "text": answer.text,
        "quantity": answer.quantity,
        "source": list(sources.labels[:split]),
        "source_sides": list(sources.sides[:split]),
        "source_roles": list(sources.roles[:split]),
        "target": list(sources.labels[split:]),
        "source_ids": list(sources.ids[:split]),
        "target_ids": list(sources.ids[split:]),
        "rows": [{"name": span.name, "start": span.start, "stop": span.stop} for span in answer.spans],
        "source_attributions": answer.relevance[:, :split].tolist(),
        "target_attributions": answer.relevance[:, split:].tolist(),
        "scores": answer.scores.tolist(),
        "sums": sums,
        "probabilities": known.probabilities.tolist(),
        "ranks": known.ranks.tolist(),
        "most_likely": [
            [{"token": name, "probability": share} for name, share in zip(*pair, strict=True)]
            for pair in zip(known.top_tokens, known.top_probabilities.tolist(), strict=True)
        ],
        "complete": answer.report.complete,
        "ran": answer.ran,
    }
    if answer.boxes is not None:
        data["boxes"] = answer.boxes.tolist()
    if answer.other is not None:
        data["contrast"] = plain(answer.other)
    return data


_MOST_LABELS = 60


def plot(answer: Answer, ax: Any) -> Any:
    """Draw a row for each span and a column for each token before the last, red for and blue against; returns the axes.

    Args:
        answer: the answer.
        ax: axes of matplotlib; None draws on a new figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    columns = len(answer.sources) - 1
    rows = len(answer.spans)
    if ax is None:
        size = min(16.0, 2.2 + 0.24 * columns), min(16.0, 1.6 + 0.24 * rows)
        ax = new_figure(*size, dark=False).add_subplot()
    values = answer.relevance[:, :columns].float()
    limit = float(values.abs().max()) or 1.0
    ax.imshow(values.numpy(), cmap=color_map(LIGHT[0], dark=False), vmin=-limit, vmax=limit, aspect="auto")
    names = [visible(label) for label in answer.sources.labels]
    style = {"fontsize": 8, "family": fonts(), "parse_math": False}
    for axis, labels, turned in (
        (ax.xaxis, names[:columns], 90),
        (ax.yaxis, [visible(s.name) for s in answer.spans], 0),
    ):
        step = -(-len(labels) // _MOST_LABELS)
        axis.set_ticks(range(0, len(labels), step), [_cut(label) for label in labels[::step]], rotation=turned, **style)
    before = columns + 1 - answer.length
    ax.axvline(before - 0.5, color="0.5", linewidth=0.8)
    if START in answer.sources.sides:
        ax.axvline(answer.sources.places(START).start - 0.5, color="0.75", linewidth=0.8)
    ax.set_xlabel("prompt | answer so far")
    ax.set_ylabel(answer.quantity.replace("_", "-") + " of")
    return ax


def _cut(label: str, most: int = 24) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
