"""The answer of `explain`: as text for a terminal, and as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..heatmap.picture import number, visible
from ..heatmap.tokens import labels_of
from ..ledger.table import percent
from .explanation import Explained, ExplainOptions

NO_RELEVANCE = "not relevance: the gradient as the method changes it (x.grad, from a start of 1)"
_REGIONS = 8


def picture_of(explained: Explained, words: bool = False) -> Any:
    """Return the heatmap of the text or the image."""
    task, found = explained.task, explained.found
    if task.tokens is not None:
        return found.heatmap(task.tokens, sample=0, scheme=task.scheme, words=words)
    return found.heatmap(sample=0, titles=explained.title)


def text_of(explained: Explained, options: ExplainOptions) -> str:
    """Return the answer as text."""
    task, found = explained.task, explained.found
    subject = f"the relevance for {explained.title}" if explained.is_relevance else f"for {explained.title}"
    parts = [f"{task.loaded.name}, preset {explained.preset}: {subject}"]
    scores = found.scores
    assert isinstance(scores, Tensor)
    if task.tokens is not None:
        picture = picture_of(explained, options.words)
        parts.append(picture.ansi() if options.color else str(picture))
    elif scores.dim() == 3:
        hint = " (--out picture.png draws every pixel)" if options.out is None else ""
        parts.append(_table(regions(scores[0]), hint))
    parts.append(_reached(float(scores.sum()), float(found.output[0])) if explained.is_relevance else NO_RELEVANCE)
    if explained.top:
        parts.append(_answers(explained))
    if found.ledger is not None:
        parts.append(found.ledger.to_string(width=options.width))
    return "\n\n".join(parts)


def _answers(explained: Explained) -> str:
    answers = [f"{share:7.1%}  {logit:+9.4g}  {visible(name)}" for name, logit, share in explained.top]
    return "\n".join(["what the model answers (probability, logit):", *answers])


def _reached(reached: float, whole: float) -> str:
    part = f" ({percent(reached / whole)})" if whole else ""
    return f"the input has {reached:+.4g} of it{part}; the rest is in biases, positions, softmax and the like"


def regions(scores: Tensor) -> Tensor:
    """Return scores [height, width] of pixels, added up in at most 8 x 8 regions of about the same size."""
    for dim, size in enumerate(scores.shape):
        parts = scores.double().tensor_split(min(_REGIONS, size), dim)
        scores = torch.stack([part.sum(dim) for part in parts], dim)
    return scores


def _table(grid: Tensor, hint: str) -> str:
    """Return a line for each row of regions, in per cent of the largest absolute value."""
    largest = float(grid.abs().max())
    rows = (100 * grid / (largest or 1.0)).round().int().tolist()
    head = f"where in the image: {grid.shape[0]} x {grid.shape[1]} regions, 100 is {number(largest)}{hint}"
    return "\n".join([head, *("".join(f"{cell:5d}" for cell in row) for row in rows)])


def data_of(explained: Explained, out: Path | None) -> dict[str, Any]:
    """Return the answer as data; the scores are ``relevance`` or not."""
    task, found = explained.task, explained.found
    assert isinstance(found.scores, Tensor)
    data: dict[str, Any] = {
        "model": task.loaded.name,
        "preset": explained.preset,
        "source": task.source,
        "target": [] if found.target is None else found.target.flatten().tolist(),
        "title": explained.title,
        "output": float(found.output[0]),
        "relevance": explained.is_relevance,
        "top": [{"name": name, "logit": logit, "probability": share} for name, logit, share in explained.top],
        "complete": found.report.complete,
        "uncovered": [f"{row.target} in {row.path}" for row in found.report.uncovered],
        "out": None if out is None else str(out),
    }
    scores = found.scores[0].double().tolist()
    if task.tokens is not None:
        ids = task.inputs["input_ids"][0].tolist()
        data["tokens"] = [
            {"token": token, "id": i, "score": s}
            for token, i, s in zip(labels_of(task.tokens, scheme=task.scheme), ids, scores, strict=True)
        ]
    else:
        data["scores"] = scores
    if found.ledger is not None:
        data["ledger"] = {"unaccounted": found.ledger.unaccounted, "entries": found.ledger.to_dicts()}
    return data
