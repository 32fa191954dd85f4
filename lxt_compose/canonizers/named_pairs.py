"""Pairs of modules by name, for canonizers: checked, expanded, merged, and named in notes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from ..errors import MatchError, RegistrationError
from ..text.folding import fold_names


def checked(pairs: Any, example: str) -> tuple[tuple[str, str], ...]:
    """Return pairs of names as tuples.

    Raises:
        TypeError: they are not pairs of names.
        ValueError: the two names of a pair have not as many ``*``.
    """
    try:
        found = tuple((first, second) for first, second in pairs)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(isinstance(name, str) for pair in found for name in pair):
        raise TypeError(f"pairs must be pairs of names such as {example}, got {pairs!r}")
    for first, second in found:
        if first.count("*") != second.count("*"):
            raise ValueError(f"what * stands for in {first!r} is put into {second!r}, so both need as many *")
    return found


def tried(
    model: nn.Module, found: Iterable[tuple[str, str]], make: Callable[..., Any], norm: int, reasons: dict[str, str]
) -> list[Any]:
    """Return the pairs that can be merged, made by ``make(first, second, first name, second name)``.

    Args:
        model: the model.
        found: names of pairs.
        make: raises ValueError where two modules cannot be merged.
        norm: which of the two names is that of the batch norm.
        reasons: receives the reasons why batch norms are in no pair.
    """
    pairs = []
    for names in found:
        try:
            pairs.append(make(*map(model.get_submodule, names), *names))
        except ValueError as reason:
            reasons[names[norm]] = str(reason)
    return pairs


class Merged:
    """The handle of a canonizer of batch norms: pairs that are merged until it is removed.

    Args:
        done: what is done to the pairs, in the notes.
        pairs: the pairs.
        reasons: why other batch norms are not merged.

    Raises:
        RegistrationError: a batch norm is in train mode.
    """

    def __init__(self, done: str, pairs: Sequence[Any], reasons: Mapping[str, str]) -> None:
        training = [pair.norm_name for pair in pairs if pair.norm.training]
        if training:
            raise RegistrationError(
                f"a batch norm in train mode uses the statistics of the batch and cannot be merged: "
                f"{', '.join(map(repr, fold_names(training)))}; call model.eval() first"
            )
        self.identities = tuple(pair.norm for pair in pairs if pair.is_identity)
        self.notes = notes_of(done, pairs, reasons)
        with ExitStack() as stack:
            for pair in pairs:
                pair.install(stack)
            self._installed = stack.pop_all()

    def remove(self) -> None:
        """Restore each module's own values."""
        self._installed.close()


def notes_of(done: str, pairs: Iterable[Any], reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Return notes: what was done to which pairs, and which norms were left alone for which reason."""
    shown = list(map(str, pairs))
    notes = [f"{done}: " + "; ".join(fold_names(shown))] if shown else []
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        notes.append(f"batch norms not merged: {', '.join(fold_names(names))}: {reason}")
    return tuple(notes)


def shown(first_name: str, second_name: str) -> str:
    """Return two names as one, with their common prefix once: ``"block: conv + bn"``."""
    first, second, block = first_name.split("."), second_name.split("."), []
    while first[1:] and second[1:] and first[0] == second[0]:
        block.append(first.pop(0))
        second.pop(0)
    names = f"{'.'.join(first)} + {'.'.join(second)}"
    return f"{'.'.join(block)}: {names}" if block else names


def expanded(model: nn.Module, layer: str, norm: str) -> list[tuple[str, str]]:
    """Return the pairs of names that two patterns match: the second has the same text for ``*`` as the first.

    Raises:
        MatchError: no module has the first name.
    """
    if "*" not in layer:
        return [(layer, norm)]
    known = [name for name, _ in model.named_modules() if name]
    pattern = re.compile("(.*)".join(map(re.escape, layer.split("*"))))
    found = []
    for name in known:
        match = pattern.fullmatch(name)
        if match:
            other = "".join(part + fill for part, fill in zip(norm.split("*"), [*match.groups(), ""], strict=True))
            found += [(name, other)] if other in known else []
    if not found:
        raise MatchError(f"no two modules in {type(model).__name__} are named {layer!r} and {norm!r}")
    return found


def submodule(model: nn.Module, name: str) -> nn.Module:
    """Return the module of this name.

    Raises:
        MatchError: there is none; the error names the closest.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        known = [other for other, _ in model.named_modules() if other]
        closest = ", ".join(map(repr, difflib.get_close_matches(name, known, n=3, cutoff=0.0)))
        raise MatchError(f"no module is named {name!r} in {type(model).__name__}; closest: {closest}") from None
