"""The answer of a command: as text, and as data for `--json`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Say = Callable[[str], None]
"""A function that takes lines about the progress."""


@dataclass(frozen=True)
class Answer:
    """The text to print, the same as data, and whether relevance met rules everywhere.

    With ``lines`` the data is a list, of which each entry is printed in a line of its own.
    """

    text: str
    data: Any
    complete: bool = True
    lines: bool = False
