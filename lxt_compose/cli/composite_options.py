"""Options for rules on the command line: a preset by name, its arguments, and merged batch norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import presets
from ..canonizers.merge_batch_norm import MergeBatchNorm
from ..composite import Composite

_WORDS = {"true": True, "false": False}
_NOT_TEXT = frozenset({"rules", "canonizers"})


@dataclass(frozen=True)
class CompositeOptions:
    """A preset's name, its arguments as ``name=value``, and whether batch norms are merged into layers before them."""

    preset: str = "attnlrp"
    arguments: tuple[str, ...] = ()
    merge_batch_norm: bool = False

    def __str__(self) -> str:
        arguments = f"({', '.join(self.arguments)})" if self.arguments else ""
        return f"{self.preset}{arguments}{' with merged batch norms' * self.merge_batch_norm}"

    def composite(self) -> Composite:
        """Return the composite that the options name.

        Raises:
            ValueError: there is no such preset, it lacks an argument, has none of this name, or not with this value.
        """
        presets.find(self.preset)
        arguments = read_arguments(self.arguments)
        for name in _NOT_TEXT & arguments.keys():
            raise ValueError(f"the argument {name!r} of a preset cannot be given as text; make a Composite in Python")
        if self.merge_batch_norm:
            arguments["canonizers"] = [MergeBatchNorm()]
        try:
            return presets.get(self.preset, **arguments)
        except TypeError as error:
            raise ValueError(f"{error}; here arguments are given as --preset-arg name=value") from error


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """The options of all commands that explain a checkpoint: rules, dtype, device."""

    rules: CompositeOptions = field(default_factory=CompositeOptions)
    dtype: torch.dtype = torch.float32
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class OneOptions(CheckpointOptions):
    """The options of commands that explain one answer.

    ``ledger`` tells where the relevance went, ``words`` adds up the pieces of each word. ``out`` is a file. ``width``
    is that of the terminal.
    """

    ledger: bool = False
    words: bool = False
    out: Path | None = None
    width: int = 100


def read_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Return the arguments given as texts ``name=value``.

    A value is a number, true or false, numbers with commas between (one for each channel), or else the text itself.

    Raises:
        ValueError: a text is not of this form, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (sign and name.isidentifier() and value):
            raise ValueError(f"an argument of a preset is given as name=value, such as gamma=0.25, got {text!r}")
        if name in found:
            raise ValueError(f"the argument {name!r} of the preset is given twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        numbers = [int(part) if part.strip().lstrip("+-").isdigit() else float(part) for part in text.split(",")]
    except ValueError:
        return text
    return numbers[0] if len(numbers) == 1 else torch.tensor(numbers)[:, None, None]
