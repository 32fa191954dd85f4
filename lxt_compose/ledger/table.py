"""Printing a ledger: leaks by place and kind, in per cent of the relevance at the output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from ..coverage.rows import ROOT, Status
from ..rules.absorption import UNCOVERED
from ..text.folding import Column, fill, fold_paths, printable, shorten_list, shorten_middle, text_table
from .books import UNSEEN, Books

_COLUMNS = (
    Column("where", shorten_middle, share=4.0),
    Column("what", share=2.0),
    Column("kind"),
    Column("absorbed", right=True),
    Column("passes", right=True),
    Column("calls", right=True),
)
_SMALLEST = 5e-5
_LONG = 1e5  # per cent: more digits would only widen the table
_STYLE = """
.lxt-ledger{--bad:#b00020;--bar:#c9d7f2;--dim:#6b6b6b}
@media (prefers-color-scheme:dark){.lxt-ledger{--bad:#ff8a95;--bar:#2c456f;--dim:#a0a0a0}}
.lxt-ledger td,.lxt-ledger th{text-align:left;vertical-align:top;padding:.15em .6em}
.lxt-ledger td.lxt-n,.lxt-ledger th.lxt-n{text-align:right;white-space:nowrap}
.lxt-ledger td.lxt-bar{background:linear-gradient(to left,var(--bar) var(--w,0%),transparent var(--w,0%))}
.lxt-ledger tr.lxt-uncovered td{color:var(--bad);font-weight:bold}
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One printed line: a place (or a pattern of places), an operation, a kind, and its parts of the seed."""

    path: str
    name: str
    kind: str
    share: float
    passes: float
    calls: int
    status: str

    @property
    def is_uncovered(self) -> bool:
        """Whether no rule is responsible for what happens there."""
        return self.status in (Status.UNCOVERED.value, UNSEEN)

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the columns."""
        kind = self.status if self.status == UNSEEN else self.kind
        texts = (self.path or ROOT, self.name, kind, percent(self.share), percent(self.passes), str(self.calls))
        return tuple(map(printable, texts))


def percent(share: float) -> str:
    """Return a part as "12.3 %", from 1e5 on as "1.7e+29 %"."""
    if math.isnan(share):
        return "-"
    rounded = round(100 * share, 1) + 0.0  # no -0.0
    return f"{rounded:.1e} %" if abs(rounded) >= _LONG else f"{rounded:.1f} %"


def lines_of(books: Books) -> list[Line]:
    """Return the lines, unfolded: one for each place, operation and kind, the largest leak first."""
    found = []
    for entry in books.entries:
        passes = books.share(entry.entered)
        for kind, amount in (entry.absorbed or {UNCOVERED: entry.lost}).items():
            found.append(Line(entry.path, entry.name, kind, books.share(amount), passes, entry.calls, entry.status))
    return sorted(found, key=lambda line: -abs(line.share))


def fold(lines: Iterable[Line]) -> list[Line]:
    """Return the lines with those joined that differ only in the numbers of their paths; leaks are added.

    The relevance that passes is the largest of any place.
    """
    lines = list(lines)
    folded = []
    for pattern, members in fold_paths((line.path, (line.name, line.kind, line.status)) for line in lines):
        group = [lines[index] for index in members]
        first = group[0]
        share, calls = sum(line.share for line in group), sum(line.calls for line in group)
        passes = max((line.passes for line in group), key=abs)
        folded.append(Line(pattern, first.name, first.kind, share, passes, calls, first.status))
    return sorted(folded, key=lambda line: -abs(line.share))


def _shown(books: Books, rows: int | None) -> tuple[list[Line], str]:
    """Return the lines to print, and a remark on the others."""
    lines = lines_of(books)
    if rows is None:
        return lines, ""
    lines = fold(lines)
    worth = [line for line in lines if line.is_uncovered or not abs(line.share) < _SMALLEST][:rows]
    kept = set(map(id, worth))
    others = [line for line in lines if id(line) not in kept]
    total = sum(line.share for line in others)
    return worth, f"{len(others)} more, {percent(total)} together" if others else ""


def summary(books: Books) -> str:
    """Return one sentence: the seed, the inputs' part and the kinds' parts."""
    kinds: dict[str, float] = {}
    for line in lines_of(books):
        if line.status != UNSEEN:
            kinds[line.kind] = kinds.get(line.kind, 0.0) + line.share
    largest_first = sorted(kinds.items(), key=lambda item: -abs(item[1]))
    parts = [f"inputs {percent(books.share(books.inputs))}"]
    parts += [f"{kind} {percent(share)}" for kind, share in largest_first if abs(share) >= _SMALLEST]
    samples = len(books.seed.by_sample)
    whose = f" of {samples} samples" if samples > 1 else ""
    return f"relevance {books.seed.total:.4g}{whose} = {' + '.join(parts)}"


def missing(books: Books) -> str:
    """Return a sentence on the missing amount, in the unit of the seed."""
    return f"unaccounted: {books.unaccounted:.1e}"


def warnings_of(books: Books) -> list[str]:
    """Return the warnings: operations without a rule with their weight, what the graph check found, notes."""
    lines = [line for line in fold(lines_of(books)) if line.is_uncovered]
    found = [
        f"{line.name} in {line.path or ROOT}: {percent(line.passes)} of the relevance passes through it "
        f"({'no rule covers it' if line.status == Status.UNCOVERED.value else 'nothing saw it run'})"
        for line in lines
    ]
    if not books.check.complete:
        found.append(f"graph check: {shorten_list([str(row) for row in books.check.rows], 400)}")
    return [printable(text) for text in (*found, *books.notes)]


def text_of(books: Books, width: int, rows: int | None, beside: Sequence[Line] = ()) -> str:
    """Return the ledger for a terminal, with lines beside those of what is absorbed."""
    lines, others = _shown(books, rows)
    lines += beside
    parts = ["\n".join([*fill(summary(books).split(), width), missing(books)])]
    if lines:
        parts.append("\n".join(text_table(_COLUMNS, [line.cells() for line in lines], width)))
    if others:
        parts.append(others)
    parts += ["\n".join(fill(text.split(), width)) for text in warnings_of(books)]
    return "\n\n".join(parts)


def html_of(books: Books, rows: int = 20, beside: Sequence[Line] = ()) -> str:
    """Return the ledger for a notebook, with lines beside those of what is absorbed."""
    lines, others = _shown(books, rows)
    lines += beside
    largest = max((abs(line.share) for line in lines if not math.isnan(line.share)), default=0.0) or 1.0
    head = "".join(f"<th{' class=lxt-n' if column.right else ''}>{escape(column.title)}</th>" for column in _COLUMNS)
    body = ""
    for line in lines:
        cells = "".join(_cell(column, cell, line, largest) for column, cell in zip(_COLUMNS, line.cells(), strict=True))
        body += f'<tr class="{"lxt-uncovered" if line.is_uncovered else ""}">{cells}</tr>'
    parts = [f"<style>{_STYLE}</style>", f"<p><strong>{escape(summary(books))}</strong>; {missing(books)}</p>"]
    if lines:
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    parts += [f"<p>{escape(text)}</p>" for text in (others, *warnings_of(books)) if text]
    return f'<div class="lxt-ledger">{"".join(parts)}</div>'


def _cell(column: Column, text: str, line: Line, largest: float) -> str:
    """Return one cell; that of a leak has a bar as long as its share of the largest one."""
    if column.title == "absorbed" and not math.isnan(line.share):
        return f'<td class="lxt-n lxt-bar" style="--w:{100 * abs(line.share) / largest:.0f}%">{escape(text)}</td>'
    return f'<td class="{"lxt-n" if column.right else ""}">{escape(text)}</td>'
