"""Reading names of units: modules, side, call, units and places."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Part = int | slice
"""One number, or a range of them."""

SIDES = ("input", "query", "key", "value", "heads")
"""Sides of a module besides its output; the last four are those of the attention that runs in it."""

_KEY = re.compile(
    r"(?P<pattern>.*?)(?::(?P<side>[a-z]+))?(?:#(?P<call>[0-9]+))?(?:\[(?P<index>[^\[\]]*)\])?(?:@(?P<at>.*))?"
)
_NUMBER = re.compile(r"-?[0-9]+")
_RANGE = re.compile(r"(-?[0-9]+)?:(-?[0-9]+)?(?::(-?[0-9]+))?")
_HELP = "'conv2[3]', 'layers.*.mlp.act[0:64]', 'layers.3.attn:heads[2]', 'layers.3@-1', 'conv2[3, 5]@0:2,4'"


@dataclass(frozen=True)
class UnitKey:
    """The parts of a text that names units.

    Attributes:
        text: the text.
        pattern: the dotted name of modules, or a glob.
        side: "" for the module's output, or one of :data:`SIDES`.
        call: which call of the module, from 1 on; None if not given.
        index: the units; None: all of them.
        at: the places, one part for each dimension that counts some; None: all of them.
    """

    text: str
    pattern: str
    side: str = ""
    call: int | None = None
    index: tuple[Part, ...] | None = None
    at: tuple[Part, ...] | None = None


def read_key(text: str) -> UnitKey:
    """Read the name of units: ``MODULES[:SIDE][#CALL][[UNITS]][@PLACES]``.

    Args:
        text: such as ``"layers.*.mlp.act[17]"`` or ``"layers.3.attn:heads[2]@-1"``.

    Raises:
        ValueError: it cannot be read.
    """
    found = _KEY.fullmatch(text.strip())
    if found is None or not found["pattern"]:
        raise ValueError(f"{text!r} names no units; they are named like {_HELP}")
    for bracket, other in ("[]", "]["):
        if found["pattern"].count(bracket) > found["pattern"].count(other):
            raise ValueError(f"{text!r}: a {other!r} is missing; units are named like {_HELP}")
    side = found["side"] or ""
    if side and side not in SIDES:
        raise ValueError(f"{text!r}: there is no side {side!r} of a module; there are {', '.join(SIDES)}")
    call = int(found["call"]) if found["call"] else None
    if call == 0:
        raise ValueError(f"{text!r}: calls of a module are counted from 1 on")
    index = None if found["index"] is None else _parts(text, found["index"])
    at = None if found["at"] is None else _parts(text, found["at"])
    whole = index is not None and len(index) == 1 and index[0] == slice(None)
    return UnitKey(text, found["pattern"], side, call, None if whole else index, at)


def _parts(text: str, said: str) -> tuple[Part, ...]:
    return tuple(_part(text, word.strip()) for word in said.split(","))


def _part(text: str, word: str) -> Part:
    if _NUMBER.fullmatch(word):
        return int(word)
    if word == "*":
        return slice(None)
    ends = _RANGE.fullmatch(word)
    if ends is None:
        raise ValueError(
            f"{text!r}: {word!r} is neither a number nor a range such as 0:64; units are named like {_HELP}"
        )
    start, stop, step = (None if end is None else int(end) for end in ends.groups())
    if step is not None and step < 1:
        raise ValueError(f"{text!r}: the step of {word!r} must be at least 1")
    return slice(start, stop, step)


def indices(parts: tuple[Part, ...] | None, size: int, what: str) -> list[int]:
    """Return the numbers that parts stand for, in their order and each once.

    Args:
        parts: numbers and ranges; None: all.
        size: the number of things that are counted.
        what: what is counted, for errors.

    Raises:
        IndexError: a number is out of range.
    """
    if parts is None:
        return list(range(size))
    found: dict[int, Any] = {}
    for part in parts:
        if isinstance(part, slice):
            found |= dict.fromkeys(range(size)[part])
        elif -size <= part < size:
            found[part % size] = None
        else:
            raise IndexError(f"there is no {part} in {what}: there are {size}, from 0 to {size - 1}")
    return list(found)
