"""Fitting names into little space: numbered names fold into one pattern, long ones are shortened, tables keep a width.

A pattern reads like a brace expansion of the shell: ``layers.{0..31}.mlp``, ``{0,2,5..7}``, with a step ``{0..30..2}``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import product
from typing import NamedTuple

ELLIPSIS = "…"
GAP = 2
_NUMBER = re.compile("([0-9]+)")
_LONGEST_NUMBER = 9

Template = tuple[str, ...]
Numbers = tuple[int, ...]


def split_numbers(name: str) -> tuple[Template, Numbers]:
    """Return the texts around the numbers of a name, and the numbers: ``"a.10.b"`` gives ``("a.", ".b"), (10,)``.

    A number that does not print as itself (``007``) stays text, so that ``join_numbers`` always gives the name back.
    """
    parts = _NUMBER.split(name)
    texts, numbers = [parts[0]], []
    for digits, text in zip(parts[1::2], parts[2::2], strict=True):
        if len(digits) > _LONGEST_NUMBER or (digits[0] == "0" and digits != "0"):
            texts[-1] += digits + text
        else:
            numbers.append(int(digits))
            texts.append(text)
    return tuple(texts), tuple(numbers)


def join_numbers(template: Template, numbers: Sequence[Sequence[int]]) -> str:
    """Return the pattern of a template whose i-th gap takes each number in ``numbers[i]`` (sorted, distinct)."""
    pieces = [template[0]]
    for gap, text in zip(numbers, template[1:], strict=True):
        pieces += [ranges(gap), text]
    return "".join(pieces)


def ranges(numbers: Sequence[int]) -> str:
    """Return distinct, sorted numbers as text: "3", "{0,2,5..7}" or, with a step, "{0..6..2}"."""
    if len(numbers) == 1:
        return str(numbers[0])
    pieces, start = [], 0
    while start < len(numbers):
        end = _run(numbers, start)
        step = numbers[start + 1] - numbers[start] if end > start else 1
        # Two numbers are always a run, and three with a step often by accident: they are written one by one.
        if end - start < (2 if step == 1 else 3):
            pieces.append(str(numbers[start]))
            start += 1
        else:
            pieces.append(f"{numbers[start]}..{numbers[end]}" + (f"..{step}" if step > 1 else ""))
            start = end + 1
    return "{" + ",".join(pieces) + "}"


def _run(numbers: Sequence[int], start: int) -> int:
    """Return where the longest run of equal steps ends that begins at ``start``."""
    end = start + 1
    if end >= len(numbers):
        return start
    step = numbers[end] - numbers[start]
    while end + 1 < len(numbers) and numbers[end + 1] - numbers[end] == step:
        end += 1
    return end


def products(points: Iterable[Numbers]) -> list[tuple[Numbers, ...]]:
    """Return disjoint products of sets that together hold exactly the given (distinct, equally long) points.

    A full product comes out as one. Otherwise points are grouped by what follows them, so a hole in one layer splits
    off that layer alone. Linear in the number of points; in the order of their first points.
    """
    pieces: list[tuple[Numbers, tuple[Numbers, ...]]] = [(point, ()) for point in points]
    for _ in range(len(pieces[0][0]) if pieces else 0):
        merged: dict[tuple[Numbers, tuple[Numbers, ...]], list[int]] = {}
        for head, tail in pieces:
            merged.setdefault((head[:-1], tail), []).append(head[-1])
        pieces = [(head, (tuple(sorted(last)), *tail)) for (head, tail), last in merged.items()]
    return [tail for _, tail in pieces]


def fold_names(names: Iterable[str]) -> list[str]:
    """Return the distinct names as patterns, in the order of their first occurrence."""
    groups: dict[Template, list[Numbers]] = {}
    for name in dict.fromkeys(names):
        template, numbers = split_numbers(name)
        groups.setdefault(template, []).append(numbers)
    return [join_numbers(template, gaps) for template, points in groups.items() for gaps in products(points)]


def fold_paths(items: Iterable[tuple[str, Hashable]]) -> list[tuple[str, list[int]]]:
    """Return patterns for (path, what else must be equal), each with the indices of its items.

    Every item is in one pattern, and the paths of a pattern are those of its items. In the order of first occurrence.
    """
    groups: dict[tuple[Template, Hashable, int], dict[Numbers, int]] = {}
    seen: dict[Hashable, int] = {}
    for index, (path, alike) in enumerate(items):
        template, numbers = split_numbers(path)
        # The same item a second time must not vanish in the first: it goes to a group of second occurrences.
        seen[alike, path] = occurrence = seen.get((alike, path), 0) + 1
        groups.setdefault((template, alike, occurrence), {})[numbers] = index
    folded = []
    for (template, *_), group in groups.items():
        for gaps in products(group):
            folded.append((join_numbers(template, gaps), sorted(group[numbers] for numbers in product(*gaps))))
    return sorted(folded, key=lambda pattern: pattern[1][0])


def block_of(path: str) -> str:
    """Return a pattern up to its last folded part: ``layers.{0..31}.mlp.fc`` is in the block ``layers.{0..31}``."""
    return path[: path.rfind("}") + 1]


def printable(text: str) -> str:
    """Return the text with line breaks, control characters and lone surrogates written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def escape_markdown(text: str) -> str:
    """Return the text with the special characters of Markdown escaped; underscores inside words are plain."""
    return re.sub(r"([\\`*<&|\[\]]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


def room(text: str) -> int:
    """Return how many columns of a terminal a printable text takes: wide characters two, combining marks none."""
    return len(text) if text.isascii() else sum(map(_room_of_one, text))


def _room_of_one(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def shorten(text: str, width: int) -> str:
    """Return the text in at most ``width`` columns, with an ellipsis for its end."""
    if room(text) <= width:
        return text
    return _head(text, width - 1) + ELLIPSIS


def shorten_middle(text: str, width: int) -> str:
    """Return the text in at most ``width`` columns, with an ellipsis for its middle; its end keeps a little more."""
    if room(text) <= width:
        return text
    head = (width - 1) * 2 // 5
    return _head(text, head) + ELLIPSIS + _head(text[::-1], width - 1 - head)[::-1]


def _head(text: str, width: int) -> str:
    """Return the longest beginning of a text that takes at most ``width`` columns."""
    used = 0
    for end, char in enumerate(text):
        used += _room_of_one(char)
        if used > width:
            return text[:end]
    return text


def shorten_list(items: Sequence[str], width: int, cut: Callable[[str, int], str] = shorten) -> str:
    """Return the items, joined by commas, in at most ``width`` columns: as many as fit, then "+4 more"."""
    whole = ", ".join(items)
    if room(whole) <= width or len(items) < 2:
        return cut(whole, width)
    used, shown = -2, 0
    for index, item in enumerate(items):
        used += room(item) + 2
        if used + len(f", +{len(items) - index - 1} more") > width:
            break
        shown = index + 1
    more = f", +{len(items) - max(shown, 1)} more"
    first = ", ".join(items[:shown]) if shown else cut(items[0], max(width - len(more), 1))
    return shorten(first + more, width)


def fill(words: Iterable[str], width: int, indent: str = "  ") -> list[str]:
    """Return lines of at most ``width`` columns, all but the first indented; longer words are shortened."""
    lines: list[str] = []
    line, used = "", 0
    for word in words:
        word = shorten_middle(word, width - len(indent))
        if line and used + 1 + room(word) > width:
            lines.append(line)
            line, used = indent + word, len(indent) + room(word)
        else:
            line = f"{line} {word}" if line else word
            used = room(line)
    return [*lines, line] if line else lines


class Column(NamedTuple):
    """A column of a table: ``cut`` shortens its cells, and a greater ``share`` lets it keep more of a scarce width."""

    title: str
    cut: Callable[[str, int], str] = shorten
    share: float = 1.0
    right: bool = False


def natural_widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the width that each column needs for title and cells; a cell may run on into empty cells to its right."""
    widths = [room(column.title) for column in columns]
    running = []
    for start, end, cell in {span for row in rows for span in _spans(row)}:
        if end == start + 1:
            widths[start] = max(widths[start], room(cell))
        else:
            running.append((start, end, room(cell)))
    for start, end, size in sorted(running):
        widths[start] += max(size - _size(widths, start, end), 0)
    return widths


def fits(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Return whether the table needs no shortening."""
    return _size(natural_widths(columns, rows), 0, len(columns)) <= width


def text_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return the lines of a table of at most ``width`` columns of a terminal, under a heading.

    Laid out here and not by tabulate, which counts characters or terminal columns by what else is installed.
    """
    widths = natural_widths(columns, rows)
    _shrink(widths, [column.share for column in columns], width - GAP * (len(columns) - 1))
    heading = [column.title for column in columns]
    rules = ["-" * size for size in widths]
    return [_line(columns, widths, row) for row in (heading, rules, *rows)]


def _spans(row: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return each cell with the columns that it has: its own, and those of the empty cells after it."""
    starts = [index for index, cell in enumerate(row) if cell or not index]
    return [(start, end, row[start]) for start, end in zip(starts, [*starts[1:], len(row)], strict=True)]


def _size(widths: Sequence[int], start: int, end: int) -> int:
    return sum(widths[start:end]) + GAP * (end - start - 1)


def _shrink(widths: list[int], shares: Sequence[float], width: int) -> None:
    """Narrow the widest column, relative to its share, until the widths fit."""
    widths[:] = [min(size, width) for size in widths]
    for _ in range(sum(widths) - width):
        widest = max(range(len(widths)), key=lambda index: widths[index] / shares[index] if widths[index] > 1 else 0)
        widths[widest] -= 1


def _line(columns: Sequence[Column], widths: Sequence[int], row: Sequence[str]) -> str:
    aligned = []
    for start, end, whole in _spans(row):
        size = _size(widths, start, end)
        cell = columns[start].cut(whole, size)
        pad = " " * (size - room(cell))
        aligned.append(pad + cell if columns[start].right else cell + pad)
    return (" " * GAP).join(aligned).rstrip()
