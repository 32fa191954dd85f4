"""Rows in parts: those of neighboring tokens run on the sequence up to the last of them, and no further.

Relevance for a token is on tokens before it, so a backward pass on the whole sequence does work that is known to give
zeros. Each part takes a forward pass of its own for that, and one row to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..attribution.inputs import Inputs
from ..composite import Composite
from .forced import Found, Wanted, alike
from .inside import Layers
from .memory import AT_A_PLACE, weights_of
from .passes import Ways, explain

_MOST = 32
"""How many parts there are at most."""
_EXTRA = 2
"""How many rows a part costs beside its own: a forward pass, and the row that is compared."""
_PASS = {"cpu": 2e9}
_PASS_ON_GPU = 1e12
"""How many multiply-adds a device could do while Python runs a pass of some layers, about."""


def explain_in_parts(
    model: nn.Module,
    composite: Composite,
    given: Callable[[int], Inputs],
    wanted: Wanted,
    ways: Ways,
    cells: Mapping[str, Callable[[Tensor], Tensor]],
) -> Found:
    """Return what :func:`~.passes.explain` finds for an answer, in parts where that is less work.

    Args:
        model: the model.
        composite: the composite.
        given: what makes the inputs for the first so many tokens of the answer.
        wanted: which numbers of the output, one for each token of the answer.
        ways: how to run; one pass where there are books or a graph.
        cells: what makes the relevance of places of that of an image or a sound, by its name.
    """
    whole = given(len(wanted.tokens))
    rows = torch.arange(len(wanted.tokens)) + 1
    stops = (rows * (wanted.weights != 0)).amax(1).tolist()
    several = [list(range(len(stops)))] if ways.ledger or ways.traced else parts_of(model, whole, stops)
    last = several.pop()
    found = explain(model, composite, whole, _part(wanted, last, len(rows)), ways, cells)
    if not several:
        return found
    parts = []
    for part in several:
        stop = max(stops[row] for row in part)
        one = explain(model, composite, given(stop), _part(wanted, part, stop), ways, cells)
        if not alike(one.values, found.values[:stop]):  # by tokens that come later: the model looks ahead
            return explain(model, composite, whole, wanted, ways, cells)
        parts.append((part, one))
    return _joined([*parts, (last, found)], found)


def parts_of(model: nn.Module, given: Inputs, stops: Sequence[int]) -> list[list[int]]:
    """Return which rows run together, those that end last at the end; all of them where parts would be no less work.

    Args:
        model: the model; what counts is how many weights it has.
        given: the inputs of the whole sequence.
        stops: for each row, the number after its last token.
    """
    device = next(model.parameters()).device.type
    weights, alone = sum(p.numel() for p in weights_of(model)), _PASS.get(device, _PASS_ON_GPU)
    order = sorted(range(len(stops)), key=stops.__getitem__)
    read_too = sum(x.numel() // AT_A_PLACE for x in given.carriers.values())
    length, final = read_too + sum(x.shape[-1] for x in given.ids.values()), max(stops)

    def split(count: int) -> list[list[int]]:
        return [order[len(order) * n // count : len(order) * (n + 1) // count] for n in range(count)]

    def work(count: int) -> float:
        each = split(count)
        ends = [*(stops[part[-1]] for part in each[:-1]), final]
        read = [length - (final - end) for end in ends]
        return sum((len(p) + _EXTRA) * n for p, n in zip(each, read, strict=True)) * weights + count * alone

    return split(min(range(1, max(2, min(_MOST, len(order) // 2) + 1)), key=work))


def _part(wanted: Wanted, rows: list[int], stop: int) -> Wanted:
    """Return what is wanted in some rows, of the first so many tokens."""
    weights = wanted.weights[rows, :stop]
    return replace(wanted, positions=wanted.positions[:stop], tokens=wanted.tokens[:stop], weights=weights)


def _joined(parts: list[tuple[list[int], Found]], whole: Found) -> Found:
    """Return all rows in their order: what a part did not read has no relevance."""
    order = torch.tensor([row for rows, _ in parts for row in rows]).argsort()

    def together(each: Sequence[Tensor]) -> Tensor:
        width = each[-1].shape[-1]
        return torch.cat([nn.functional.pad(x, (0, width - x.shape[-1])) for x in each])[order]

    found = [one for _, one in parts]
    scores = {name: together([one.scores[name] for one in found]) for name in whole.scores}
    inner = [one.layers for one in found if one.layers is not None]
    layers = None
    if inner:
        heads = [one.heads for one in inner if one.heads is not None]
        layers = Layers(
            inner[-1].names,
            together([one.tokens for one in inner]),
            together(heads) if len(heads) == len(inner) else None,
        )
    ran = f"{whole.ran}, in {len(parts)} parts that end with their last tokens"
    return replace(whole, scores=scores, layers=layers, ran=ran)
