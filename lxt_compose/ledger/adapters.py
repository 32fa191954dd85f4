"""Adapters: how much of the relevance at a layer came through what was added to the layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .books import Amount, Books
from .table import Line, fold

_WRAPPED = ".base_layer"
"""The name that PEFT gives to the layer inside of one that adapts it."""


@dataclass(frozen=True, eq=False)
class AdapterEntry:
    """One layer with an adapter (LoRA, DoRA, LoHa, ...).

    Attributes:
        path: the dotted name of the layer.
        type: its class.
        calls: how often it ran.
        entered: the relevance that arrived at its output.
        through: the part of it that did not come from the output of the layer inside.
    """

    path: str
    type: str
    calls: int
    entered: Amount
    through: Amount


def adapters_of(books: Books) -> tuple[AdapterEntry, ...]:
    """Return the layers that hold another one that they adapt, in the order of first execution.

    Adapters that scale or rotate the input or the output (IA3, OFT) add nothing, so no relevance comes through them.
    """
    inside = {m.path.removesuffix(_WRAPPED): m for m in books.modules if m.path.endswith(_WRAPPED)}
    return tuple(
        AdapterEntry(m.path, m.type, m.calls, m.entered, m.entered - inside[m.path].entered)
        for m in books.modules
        if m.path in inside
    )


def adapter_lines(books: Books) -> list[Line]:
    """Return the printed lines, folded, with the relevance that came through the adapters."""
    lines = [
        Line(found.path, "adapter", "adapted", math.nan, books.share(found.through), found.calls, "")
        for found in adapters_of(books)
    ]
    return fold(lines)
