"""The coverage report: which rule acts on which module and op, how often, and what no rule covers. Pure data.

A report is made of rows, one for each module and each kind of op at a place. Printed, rows that differ only in the
numbers of their paths fold into one (``layers.{0..31}.mlp``), and ops that are treated alike at one place share a line,
so that a model of 80 layers fits on a screen. ``rows`` and ``to_dicts()`` always hold every row.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from html import escape
from itertools import groupby

from tabulate import tabulate

from lxt_compose.folding import (
    Column,
    block_of,
    escape_markdown,
    fill,
    fits,
    fold_names,
    fold_paths,
    printable,
    shorten_list,
    shorten_middle,
    split_numbers,
    text_table,
)

ROOT = "(model)"
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


class Status(str, Enum):
    """What became of a module or an op; the value is the word that is printed."""

    RULED = "ruled"
    DEFAULT = "default"
    EXACT = "exact"
    SHADOWED = "shadowed"
    NOT_EXECUTED = "not executed"
    UNCOVERED = "uncovered"
    BOUND = "bound"

    def __str__(self) -> str:
        return self.value


_IN_FORCE = (Status.RULED, Status.DEFAULT, Status.EXACT)


@dataclass(frozen=True, slots=True)
class Row:
    """One module, or one kind of op inside one module.

    ``path`` is the dotted path ("" is the root; for an op the innermost module that was running), ``target`` the type
    of the module or the name of the op, ``rule`` and ``key`` are printed forms and may be empty, ``aliases`` are the
    other paths of a shared module, ``note`` is a short remark ("inside encoder.0").
    """

    kind: str
    path: str
    target: str
    rule: str
    key: str
    calls: int
    status: Status
    aliases: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One printed line: ``places`` paths, written as one pattern, with the same targets. ``calls`` is their total."""

    kind: str
    path: str
    targets: tuple[str, ...]
    rule: str
    key: str
    calls: int
    status: Status
    places: int = 1
    aliases: tuple[str, ...] = ()
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The texts of the columns, whole and printable."""
        where = ("in " if self.kind == "op" else "") + (self.path or ROOT)
        # Why an op is uncovered is said once, under the table.
        note = "" if self.status is Status.UNCOVERED else self.note
        remarks = [self.status.value, note, "also " + ", ".join(self.aliases) if self.aliases else ""]
        texts = (where, self.times, ", ".join(self.targets), self.rule, self.key, str(self.calls))
        return tuple(map(printable, (*texts, ", ".join(filter(None, remarks)))))

    @property
    def times(self) -> str:
        """How many places, "x32"; nothing for one."""
        return f"x{self.places}" if self.places > 1 else ""

    def under(self, block: str) -> Line:
        """The line as it reads under a heading that names its block already."""
        path = self.path.removeprefix(block).removeprefix(".") or "(itself)"
        return replace(self, path=path, note=self.note.replace(block + ".", ""))

    def headline(self) -> str:
        """The line as a part of a sentence: "foo in layers.{0..31}.mlp (x32)"."""
        what = f"{', '.join(self.targets)} {'in' if self.kind == 'op' else 'at'} {self.path or ROOT}"
        return printable(what + (f" ({self.times})" if self.times else ""))


def line_of(row: Row) -> Line:
    """The line of one row alone."""
    return Line(row.kind, row.path, (row.target,), row.rule, row.key, row.calls, row.status, 1, row.aliases, row.note)


def fold(rows: Iterable[Row]) -> list[Line]:
    """Lines that stand for exactly these rows: each path of a line's pattern, with each of its targets, is one row.

    Rows fold when they differ only in their calls and in the numbers of their paths, aliases and notes. In the order
    of first occurrence.
    """
    rows = list(rows)
    lines = []
    for pattern, members in fold_paths((row.path, _alike(row)) for row in rows):
        folded = [rows[index] for index in members]
        line = replace(
            line_of(folded[0]),
            path=pattern,
            calls=sum(row.calls for row in folded),
            places=len(folded),
            aliases=tuple(fold_names(alias for row in folded for alias in row.aliases)),
            note=", ".join(fold_names(row.note for row in folded)),
        )
        lines.append(line)
    return _join_ops(lines)


def _alike(row: Row) -> Hashable:
    """What rows that fold have in common besides their path: all but the calls, and texts without their numbers."""
    aliases = frozenset(split_numbers(alias)[0] for alias in row.aliases)
    return row.kind, row.target, row.rule, row.key, row.status, aliases, split_numbers(row.note)[0]


def _join_ops(lines: Iterable[Line]) -> list[Line]:
    """Ops that are treated alike at the same places share a line; an uncovered op keeps its own."""
    joined: dict[object, list[Line]] = {}
    for number, line in enumerate(lines):
        apart = line.kind != "op" or line.status is Status.UNCOVERED
        alike = (line.path, line.rule, line.key, line.status, line.aliases, line.note)
        joined.setdefault(number if apart else alike, []).append(line)
    return [
        replace(group[0], targets=tuple(t for line in group for t in line.targets), calls=sum(g.calls for g in group))
        for group in joined.values()
    ]


@dataclass(frozen=True, slots=True, init=False, repr=False)
class CoverageReport:
    """What was covered and what was not: immutable, equal by content, ``print(report)`` gives the table.

    ``rows`` are in the order of first execution, ``unmatched`` are keys that matched nothing, ``executed`` says
    whether a forward has run, ``notes`` are printed under the table.
    """

    rows: tuple[Row, ...]
    unmatched: tuple[str, ...]
    executed: bool
    notes: tuple[str, ...]

    def __init__(
        self, rows: Sequence[Row], *, unmatched: Sequence[str] = (), executed: bool, notes: Sequence[str] = ()
    ) -> None:
        values = {"rows": tuple(rows), "unmatched": tuple(unmatched), "executed": executed, "notes": tuple(notes)}
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
        """A forward has run and nothing is uncovered."""
        return self.executed and not self.uncovered

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
        """The same as a Markdown table, with nothing shortened."""
        parts = [f"**{escape_markdown(self._summary(1000))}**"]
        lines = self._lines(every_row)
        if lines:
            columns, rows = _table(line.cells() for line in lines)
            table = [[escape_markdown(cell) for cell in row] for row in rows]
            parts.append(tabulate(table, [c.title for c in columns], tablefmt="pipe", disable_numparse=True))
        parts += [f"{head}: {escape_markdown(text)}" for head, text in self._remarks(every_row)]
        return "\n\n".join(parts)

    def to_dicts(self) -> list[dict[str, object]]:
        """Every row as a dictionary of strings, numbers and lists, ready for JSON."""
        return [asdict(row) | {"status": row.status.value, "aliases": list(row.aliases)} for row in self.rows]

    def _repr_html_(self) -> str:
        """The folded table for a notebook: self-contained, for light and dark backgrounds."""
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
        """The lines of the table. Modules that were not executed are named under it, unless every row is wanted."""
        if every_row:
            lines = [line_of(row) for row in self.rows]
        else:
            lines = fold(row for row in self.rows if row.status is not Status.NOT_EXECUTED)
        return sorted(lines, key=lambda line: line.status is not Status.UNCOVERED)

    def _remarks(self, every_row: bool) -> list[tuple[str, str]]:
        """What stands under the table: a heading and a text each."""
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
        if len(self.rows) == len(self.not_executed):
            return "complete, but nothing carried relevance: does the input require grad?"
        modules = sum(row.kind == "module" and row.status in _IN_FORCE for row in self.rows)
        ops = len({row.target for row in self.rows if row.kind == "op" and row.status in _IN_FORCE})
        counts = f"{modules} module{'s' * (modules != 1)} and {ops} kind{'s' * (ops != 1)} of op"
        return f"complete: {counts}, nothing uncovered"


def _table(cells: Iterable[tuple[str, ...]]) -> tuple[list[Column], list[list[str]]]:
    """Columns and rows, without the columns that are empty throughout."""
    rows = list(cells)
    used = [index for index in range(len(_COLUMNS)) if any(row[index] for row in rows)]
    return [_COLUMNS[index] for index in used], [[row[index] for index in used] for row in rows]


def _without_repetition(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """The cells of a table that would be too wide: lines of one block stand under its name, keys say less.

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
