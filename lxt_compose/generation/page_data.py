"""The plain data of a page: pieces of text, the strongest sources of each, and predictions."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..heatmap.picture import number, visible
from ..heatmap.tokens import Piece
from .answer import OUTPUT, PROMPT, REST, START, Answer
from .grids import FRAME, IMAGE, SOUND
from .page_grids import floats as _floats
from .page_grids import folded, grid_data, packed_cells
from .page_inside import inside_data
from .prompts import TEMPLATE

WHOLE = 256
"""Up to how many sources every one of them is kept."""


def data_of(answer: Answer, *, sources: int = 64) -> dict[str, Any]:
    """Return the data of an answer for a page.

    Args:
        answer: the answer.
        sources: how many of the strongest sources are kept for each piece of the answer, where there are many.
    """
    sides = sides_of(answer)
    own = list(range(len(sides[PROMPT]) + len(sides[START]), sum(map(len, sides.values()))))
    rows, groups = _rows(answer, sides[OUTPUT])
    data: dict[str, Any] = {
        "text": visible(answer.text),
        "pieces": _pieces(answer, sides),
        "rows": [[own[first], own[last], name] for first, last, name in rows],
        "joined": answer.complete(),
        "quantity": answer.quantity.replace("_", "-"),
        "scores": _floats(groups @ answer.scores.double()),
        "direct": _matrix(answer, sides, groups, sources),
        "likely": _likely(answer, sides[OUTPUT]),
        "verdict": verdict(answer).replace(" -", " \u2212"),
        "grids": [grid_data(grid) for grid in answer.sources.grids],
    }
    if answer.layers is not None:
        read = _onto(answer, sides)[-1 - answer.layers.tokens.shape[2] : -1]
        data["inside"] = inside_data(answer.layers, read, groups)
    if answer.boxes is not None:
        data["boxes"] = [[_short(x) for x in answer.boxes[piece.tokens[0]].tolist()] for piece in sides[OUTPUT]]
    if answer.complete() and answer.boxes is None:
        data["handed"] = _matrix(answer.handed_on(), sides, groups, sources)
    if answer.other is not None and answer.covers():
        data["other"] = {**data_of(answer.other, sources=sources), "grids": []}  # their images are the same
        data["contrast"] = _contrast(answer, answer.other)
    return data


def sides_of(answer: Answer) -> dict[str, list[Piece]]:
    """Return the pieces of prompt, decoder start and answer; the tokens of an image are one piece."""
    return {
        PROMPT: folded(answer.sources.pieces(PROMPT)),
        START: answer.sources.pieces(START),
        OUTPUT: answer.sources.pieces(OUTPUT),
    }


def _rows(answer: Answer, pieces: Sequence[Piece]) -> tuple[list[tuple[int, int, str]], Tensor]:
    """Return the rows of a page, with first and last piece and name, and the rows of the answer that each adds up."""
    if answer.complete():
        groups = torch.zeros(len(pieces), answer.length, dtype=torch.float64)
        for place, piece in enumerate(pieces):
            groups[place, list(piece.tokens)] = 1
        return [(place, place, visible(piece.label)) for place, piece in enumerate(pieces)], groups
    where = {token: at for at, piece in enumerate(pieces) for token in piece.tokens}
    rows = [(where[span.start], where[span.stop - 1], visible(span.name)) for span in answer.spans]
    return rows, torch.eye(len(rows), dtype=torch.float64)


def _pieces(answer: Answer, sides: dict[str, list[Piece]]) -> list[dict[str, Any]]:
    """Return the pieces of all sides, in order, without entries that have the usual value."""
    found = []
    for side, pieces in sides.items():
        first = answer.sources.places(side).start
        for piece in pieces:
            tokens = [first + token for token in piece.tokens]
            role = answer.sources.roles[tokens[0]] if answer.sources.roles else ""
            one: dict[str, Any] = {"t": visible(piece.text), "side": side}
            one |= {"s": 1} if piece.space and not piece.lines else {}
            one |= {"l": piece.lines} if piece.lines else {}
            one |= {"x": 1} if piece.special or role == TEMPLATE else {}
            one |= {"r": role} if role else {}
            one |= {"raw": visible(" ".join(answer.sources.tokens[token] for token in tokens))}
            found.append(one)
    return found


def _onto(answer: Answer, sides: dict[str, list[Piece]]) -> Tensor:
    """Return for each token the number of the piece that it is a part of; -1 for places of images and sounds."""
    owner, at = torch.full((len(answer.sources),), -1), 0
    for side, pieces in sides.items():
        first = answer.sources.places(side).start
        for piece in pieces:
            owner[[first + token for token in piece.tokens]] = at
            at += 1
    return owner


def _matrix(answer: Answer, sides: dict[str, list[Piece]], groups: Tensor, keep: int) -> dict[str, Any]:
    """Return the relevance of pieces for each row, row after row: those of most absolute relevance.

    ``start`` says where each row begins among ``index`` and ``value``; ``sums`` are those of all, by group.
    """
    owner = _onto(answer, sides)
    count = int(owner.max()) + 1
    rows = groups @ answer.relevance.double()
    on_text = owner >= 0
    table = torch.zeros(len(rows), count, dtype=torch.float64).index_add_(1, owner[on_text], rows[:, on_text])
    kept = min(count if count <= WHOLE else keep, count)
    order = table.abs().topk(kept, 1).indices
    strongest = table.gather(1, order)
    real = strongest != 0
    total = float(table.abs().sum())
    return {
        "start": _integers(torch.cat([torch.zeros(1, dtype=torch.long), real.sum(1).cumsum(0)])),
        "index": _integers(order[real]),
        "value": _floats(strongest[real]),
        "sums": {name: _floats(groups @ amount.double()) for name, amount in answer.sums().items()},
        "kept": float(strongest.abs().sum()) / total if total else 1.0,
        "most": kept,
        **packed_cells(rows[:, ~on_text]),
    }


def _likely(answer: Answer, pieces: Sequence[Piece]) -> list[list[Any]]:
    """Return for each piece of the answer, and each token of it: probability, rank, the most likely tokens."""
    found, known = [], answer.predictions
    shares, ranks = known.probabilities.tolist(), known.ranks.tolist()
    best = known.top_probabilities.tolist()
    for piece in pieces:
        found.append([
            [
                visible(known.tokens[token]),
                _short(shares[token]),
                ranks[token],
                [
                    [visible(name), _short(share)]
                    for name, share in zip(known.top_tokens[token], best[token], strict=True)
                ],
            ]
            for token in piece.tokens
        ])  # fmt: skip
    return found


def _contrast(answer: Answer, other: Answer) -> dict[str, Any]:
    """Return what speaks for an answer rather than another, piece by piece."""
    found = answer.contrast()

    def on_pieces(one: Answer, relevance: Tensor) -> Tensor:
        owner = _onto(one, sides_of(one))
        on_text = owner >= 0
        found = torch.zeros(int(owner.max()) + 1, dtype=torch.float64)
        return found.index_add_(0, owner[on_text], relevance[on_text].double())

    shared = sum(len(pieces) for side, pieces in sides_of(other).items() if side != OUTPUT)
    own = on_pieces(answer, torch.cat([found.before, found.own]))
    its = on_pieces(other, torch.cat([torch.zeros_like(found.before), found.its]))
    sums = {"prompt": found.before.sum(), "this answer": found.own.sum(), "the other answer": found.its.sum()}
    return {
        "values": _floats(own),
        "against": _floats(its[shared:]),
        **packed_cells(found.before[None, : sum(map(len, answer.sources.grids))]),
        "score": found.score,
        "sums": {**{name: float(amount) for name, amount in sums.items()}, REST: found.rest},
    }


def verdict(answer: Answer) -> str:
    """Return a sentence on whether all was covered, and on the parts of the scores of all rows.

    In percent where all parts have the sign of the whole, else as amounts.
    """
    names, uncovered = answer.sources.groups(), len(answer.report.uncovered)
    score, sums = float(answer.scores.sum()), {name: float(x.sum()) for name, x in answer.sums().items()}
    frames = {grid.name for grid in answer.sources.grids if FRAME in grid.name}
    parts: dict[str, float] = {}
    for name in names:
        called = "the video" if name in frames else _CALLED.get(name, name)
        if name == PROMPT or sums[name]:
            parts[called] = parts.get(called, 0.0) + sums[name]
    parts["biases and the like"] = score - sum(parts.values())
    how = "complete" if answer.report.complete else f"NOT complete: {uncovered} operations have no rule"
    if score and all(part / score >= 0 for part in parts.values()):
        return f"{how}: of the score, " + ", ".join(f"{part / score:.0%} is on {name}" for name, part in parts.items())
    amounts = ", ".join(f"{number(part)} on {name}" for name, part in parts.items())
    return f"{how}: the score {number(score)} is {amounts}"


_CALLED = {
    IMAGE: "the image",
    SOUND: "the sound",
    OUTPUT: "the answer's own tokens",
    START: "the decoder's start",
    PROMPT: "the prompt",
}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _integers(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().astype("<u4").tobytes()).decode("ascii")
