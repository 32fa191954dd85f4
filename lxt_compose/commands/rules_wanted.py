"""The rules that the command line asks for: a preset by name, its arguments, and merged batch norms."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import presets
from ..canonize import MergeBatchNorm
from ..composite import Composite

_WORDS = {"true": True, "false": False}
_OF_A_COMPOSITE = ("formulation", "defaults", "strict")
_NOT_TEXT = ("rules", "canonizers")


@dataclass(frozen=True)
class RulesWanted:
    """A preset's name, its arguments as ``name=value``, and whether batch norms are merged into layers before them."""

    preset: str = "attnlrp"
    arguments: tuple[str, ...] = ()
    merge_batch_norm: bool = False

    def __str__(self) -> str:
        arguments = f"({', '.join(self.arguments)})" if self.arguments else ""
        return f"{self.preset}{arguments}{' with merged batch norms' * self.merge_batch_norm}"

    def composite(self) -> Composite:
        """The composite that is meant.

        Raises:
            ValueError: there is no such preset, it lacks an argument, has none of this name, or not with this value.
        """
        if self.preset not in presets.available():
            presets.get(self.preset)  # for its error
        arguments = read_arguments(self.arguments)
        self._check(arguments)
        try:
            composite = presets.get(self.preset, **arguments)
        except TypeError as error:
            raise ValueError(
                f"the preset {self.preset} cannot be made with {', '.join(self.arguments)}: {error}"
            ) from error
        if self.merge_batch_norm:
            composite = copy.copy(composite)
            composite.canonizers = (*composite.canonizers, MergeBatchNorm())
        return composite

    def _check(self, arguments: dict[str, Any]) -> None:
        """Raise if the names are not those that the preset takes."""
        parameters = inspect.signature(getattr(presets, self.preset)).parameters.values()
        named = {p.name: p for p in parameters if p.name not in _NOT_TEXT and p.kind is not p.VAR_KEYWORD}
        known = list(named)
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            known += [name for name in _OF_A_COMPOSITE if name not in named]
        for name in arguments:
            if name not in known:
                raise ValueError(f"the preset {self.preset} has no argument {name!r}; it takes {', '.join(known)}")
        missing = [name for name, p in named.items() if p.default is p.empty and name not in arguments]
        if missing:
            how = " ".join(f"--preset-arg {name}=..." for name in missing)
            raise ValueError(f"the preset {self.preset} needs {' and '.join(missing)}: {how}")


def read_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """The arguments that texts ``name=value`` stand for.

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
