"""The coverage report: which rule acts on which module and op, how often, and what no rule covers. Pure data.

A report is made of rows, one for each module and each kind of op at a place. Printed, rows that differ only in the
numbers of their paths fold into one (``layers.{0..31}.mlp``), and ops that are treated alike at one place share a line,
so that a model of 80 layers fits on a screen. ``rows`` and ``to_dicts()`` always hold every row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from itertools import groupby

from tabulate import tabulate

from ..text.folding import (
    Column,
    block_of,
    escape_markdown,
    fill,
    fits,
    printable,
    shorten_list,
    shorten_middle,
    text_table,
)
from .rows import Line, Row, Status, fold, line_of

_NARROWEST = 40
# Experts that a router left out can be hundreds: every_row and not_executed name them all.
_IDLE_ROOM = 400
_COLUMNS = (
    Column("where", shorten_middle, share=4.0),
    Column("places"),
    Column("what", lambda cell, width: shorten_list(cell.split(", "), width), share=1.5),
    Column("rule", share=2.0),
    Column("key"),
    Column("calls", right=True),
    Column("status"),
)
_STYLE = """
.lxt-coverage{--bad:#b00020;--bad-back:#fde7ea;--good:#1b6e2e;--dim:#6b6b6b}
@media (prefers-color-scheme:dark){.lxt-coverage{--bad:#ff8a95;--bad-back:#4a1a20;--good:#7fd192;--dim:#a0a0a0}}
.lxt-coverage td,.lxt-coverage th{text-align:left;vertical-align:top;padding:.15em .6em}
.lxt-coverage td:last-child{white-space:nowrap}
.lxt-coverage .lxt-uncovered td{color:var(--bad);background:var(--bad-back);font-weight:bold}
.lxt-coverage .lxt-ruled td:last-child{color:var(--good)}
.lxt-coverage .lxt-shadowed td,.lxt-coverage .lxt-not_executed td{color:var(--dim)}
"""


_IN_FORCE = (Status.RULED, Status.DEFAULT, Status.EXACT)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class CoverageReport:
    """What was covered and what was not: immutable, equal by content, ``print(report)`` gives the table.

    ``rows`` are in the order of first execution, ``unmatched`` are keys that matched nothing, ``executed`` says
    whether a forward has run and ``carried`` whether relevance was carried in it, ``in_parts`` whether modules were
    called on their own rather than by the model; ``notes`` are printed under the table.
    """

    rows: tuple[Row, ...]
    unmatched: tuple[str, ...]
    executed: bool
    notes: tuple[str, ...]
    in_parts: bool
    carried: bool

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        unmatched: Sequence[str] = (),
        executed: bool,
        notes: Sequence[str] = (),
        in_parts: bool = False,
        carried: bool = True,
    ) -> None:
        values: dict[str, object] = {
            "rows": tuple(rows),
            "unmatched": tuple(unmatched),
            "executed": executed,
            "notes": tuple(notes),
        }
        values |= {"in_parts": in_parts, "carried": carried}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def uncovered(self) -> tuple[Row, ...]:
        """Rows that carry relevance without a rule: the plain gradient passes there."""
        return tuple(row for row in self.rows if row.status is Status.UNCOVERED)

    @property
    def not_executed(self) -> tuple[Row, ...]:
        """Bound modules that the forward did not reach."""
        return tuple(row for row in self.rows if row.status is Status.NOT_EXECUTED)

    @property
    def complete(self) -> bool:
        """A forward of the whole model has run, relevance was carried, and nothing is uncovered."""
        return self.executed and self.carried and not self.uncovered and not self.in_parts

    def to_string(self, *, every_row: bool = False, width: int = 100) -> str:
        """Summary, table and remarks in lines of at most ``width`` columns (40 at least); uncovered rows come first.

        Texts that do not fit are shortened. ``every_row`` prints each row on a line of its own.
        """
        width = max(width, _NARROWEST)
        parts = [fill(self._summary(width).split(), width)]
        lines = self._lines(every_row)
        if lines:
            table = _table(line.cells() for line in lines)
            parts.append(text_table(*(table if fits(*table, width) else _table(_without_repetition(lines))), width))
        remarks = (fill(f"{head}: {text}".split(), width) for head, text in self._remarks(every_row))
        parts.append([line for remark in remarks for line in remark])
        return "\n\n".join("\n".join(part) for part in parts if part)

    def __str__(self) -> str:
        return self.to_string()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._summary(100)}>"

    def to_markdown(self, *, every_row: bool = False) -> str:
        """Return the same as a Markdown table, with nothing shortened."""
        parts = [f"**{escape_markdown(self._summary(1000))}**"]
        lines = self._lines(every_row)
        if lines:
            columns, rows = _table(line.cells() for line in lines)
            table = [[escape_markdown(cell) for cell in row] for row in rows]
            parts.append(tabulate(table, [c.title for c in columns], tablefmt="pipe", disable_numparse=True))
        parts += [f"{head}: {escape_markdown(text)}" for head, text in self._remarks(every_row)]
        return "\n\n".join(parts)

    def to_dicts(self) -> list[dict[str, object]]:
        """Return every row as a dictionary of strings, numbers and lists, ready for JSON."""
        return [asdict(row) | {"status": row.status.value, "aliases": list(row.aliases)} for row in self.rows]

    def _repr_html_(self) -> str:
        """Return the folded table for a notebook: self-contained, for light and dark backgrounds."""
        lines = self._lines(every_row=False)
        columns, rows = _table(line.cells() for line in lines)
        head = "".join(f"<th>{escape(column.title)}</th>" for column in columns)
        body = ""
        for line, row in zip(lines, rows, strict=True):
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
            body += f'<tr class="lxt-{line.status.name.lower()}">{cells}</tr>'
        parts = [f"<style>{_STYLE}</style>", f"<p><strong>{escape(self._summary(1000))}</strong></p>"]
        if lines:
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        parts += [f"<p>{escape(f'{head}: {text}')}</p>" for head, text in self._remarks(every_row=False)]
        return f'<div class="lxt-coverage">{"".join(parts)}</div>'

    def _lines(self, every_row: bool) -> list[Line]:
        """Return the lines of the table; modules that were not executed are named below, unless every row is wanted."""
        if every_row:
            lines = [line_of(row) for row in self.rows]
        else:
            lines = fold(row for row in self.rows if row.status is not Status.NOT_EXECUTED)
        return sorted(lines, key=lambda line: line.status is not Status.UNCOVERED)

    def _remarks(self, every_row: bool) -> list[tuple[str, str]]:
        """Return the remarks under the table, a heading and a text each."""
        idle = [] if every_row else [line.headline() for line in fold(self.not_executed)]
        remarks = list(dict.fromkeys((f"uncovered {row.target}", row.note) for row in self.uncovered if row.note))
        remarks += [("matched nothing", ", ".join(self.unmatched)), ("not executed", shorten_list(idle, _IDLE_ROOM))]
        remarks += [("note", note) for note in self.notes]
        return [(head, printable(text)) for head, text in remarks if text]

    def _summary(self, width: int) -> str:
        if not self.executed:
            return "no forward has run yet: " + ("modules that are bound" if self.rows else "no module is bound")
        if self.uncovered:
            lines = [line.headline() for line in fold(self.uncovered)]
            verdict = f"NOT complete: {len(lines)} uncovered: "
            return verdict + shorten_list(lines, width - len(verdict), shorten_middle)
        if not self.carried:
            return "NOT complete: nothing carried relevance: does the input require grad?"
        if self.in_parts:
            return "NOT known to be complete: parts of the model were called on their own, see the note"
        modules = sum(row.kind == "module" and row.status in _IN_FORCE for row in self.rows)
        ops = len({row.target for row in self.rows if row.kind == "op" and row.status in _IN_FORCE})
        counts = f"{modules} module{'s' * (modules != 1)} and {ops} kind{'s' * (ops != 1)} of op"
        return f"complete: {counts}, nothing uncovered"


def _table(cells: Iterable[tuple[str, ...]]) -> tuple[list[Column], list[list[str]]]:
    """Return columns and rows, without the columns that are empty throughout."""
    rows = list(cells)
    used = [index for index in range(len(_COLUMNS)) if any(row[index] for row in rows)]
    return [_COLUMNS[index] for index in used], [[row[index] for index in used] for row in rows]


def _without_repetition(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """Return the cells of a table that would be too wide: lines of one block stand under its name, keys say less.

    Uncovered lines stay whole. A key that is just what stands in the line anyway, its type or function, is left out.
    """
    rows: list[tuple[str, ...]] = []
    for block, group in groupby(lines, lambda line: "" if line.status is Status.UNCOVERED else block_of(line.path)):
        members = [replace(line, key=_brief_key(line)) for line in group]
        if block and len(members) > 1:
            rows.append((printable(f"{block} {members[0].times}"), *[""] * 6))
            members = [replace(line.under(block), places=1) for line in members]
            rows += [("  " + where, *rest) for where, *rest in (line.cells() for line in members)]
        else:
            cells = [line.cells() for line in members]
            rows += [(f"{where} {times}".rstrip(), "", *rest) for where, times, *rest in cells]
    return rows


def _brief_key(line: Line) -> str:
    return "" if line.key.rpartition(".")[2] in line.targets else line.key
