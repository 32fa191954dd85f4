"""The rows of a coverage report, and the printed lines that they fold into."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from enum import Enum

from ..text.folding import fold_names, fold_paths, printable, split_numbers

ROOT = "(model)"


class Status(str, Enum):
    """How a module or an op was treated; the value is the word that is printed."""

    RULED = "ruled"
    DEFAULT = "default"
    EXACT = "exact"
    SHADOWED = "shadowed"
    NOT_EXECUTED = "not executed"
    UNCOVERED = "uncovered"
    BOUND = "bound"

    def __str__(self) -> str:
        return self.value


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
        """Return the texts of the columns, whole and printable."""
        where = ("in " if self.kind == "op" else "") + (self.path or ROOT)
        # The reason why an op is uncovered is printed once, under the table.
        note = "" if self.status is Status.UNCOVERED else self.note
        remarks = [self.status.value, note, "also " + ", ".join(self.aliases) if self.aliases else ""]
        texts = (where, self.times, ", ".join(self.targets), self.rule, self.key, str(self.calls))
        return tuple(map(printable, (*texts, ", ".join(filter(None, remarks)))))

    @property
    def times(self) -> str:
        """How many places, "x32"; nothing for one."""
        return f"x{self.places}" if self.places > 1 else ""

    def under(self, block: str) -> Line:
        """Return the line as it is printed under a heading that already names its block."""
        path = self.path.removeprefix(block).removeprefix(".") or "(itself)"
        return replace(self, path=path, note=self.note.replace(block + ".", ""))

    def headline(self) -> str:
        """Return the line as a part of a sentence: "foo in layers.{0..31}.mlp (x32)"."""
        what = f"{', '.join(self.targets)} {'in' if self.kind == 'op' else 'at'} {self.path or ROOT}"
        return printable(what + (f" ({self.times})" if self.times else ""))


def line_of(row: Row) -> Line:
    """Return the line of one row alone."""
    return Line(row.kind, row.path, (row.target,), row.rule, row.key, row.calls, row.status, 1, row.aliases, row.note)


def fold(rows: Iterable[Row]) -> list[Line]:
    """Return lines that stand for exactly these rows: each path of a line's pattern, with each of its targets, is one.

    Rows fold when they differ only in their calls and in the numbers of their paths, aliases and notes. Lines are in
    the order of first occurrence.
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
    """Return what rows that fold have in common besides their path: all but the calls, texts without their numbers."""
    aliases = frozenset(split_numbers(alias)[0] for alias in row.aliases)
    return row.kind, row.target, row.rule, row.key, row.status, aliases, split_numbers(row.note)[0]


def _join_ops(lines: Iterable[Line]) -> list[Line]:
    """Join ops that are treated alike at the same places into one line; an uncovered op keeps its own."""
    joined: dict[object, list[Line]] = {}
    for number, line in enumerate(lines):
        apart = line.kind != "op" or line.status is Status.UNCOVERED
        alike = (line.path, line.rule, line.key, line.status, line.aliases, line.note)
        joined.setdefault(number if apart else alike, []).append(line)
    return [
        replace(group[0], targets=tuple(t for line in group for t in line.targets), calls=sum(g.calls for g in group))
        for group in joined.values()
    ]
