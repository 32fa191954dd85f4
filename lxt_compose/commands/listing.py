"""The lists of presets and rules."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from tabulate import tabulate

from .. import presets, rules
from ..rules import Rule
from .answer import Answer


def list_presets(name: str | None = None) -> Answer:
    """All presets with one line each, or one of them in full.

    Raises:
        ValueError: there is no such preset.
    """
    if name is not None:
        return _one(name, presets.find(name))
    rows = [{"name": preset, "summary": _summary(presets.find(preset))} for preset in presets.available()]
    return Answer(_table(rows), rows)


def list_rules(name: str | None = None) -> Answer:
    """All rules with their arguments and one line each, or one of them in full.

    Raises:
        ValueError: there is no such rule.
    """
    found = dict(_rules())
    if name is not None:
        if name not in found:
            raise ValueError(f"no rule is called {name!r}; there are {', '.join(found)}")
        return _one(name, found[name])
    rows = [
        {
            "name": f"{rule}({_arguments(kind)})",
            "formulations": ", ".join(kind.formulations),
            "summary": _summary(kind),
        }
        for rule, kind in found.items()
    ]
    return Answer(_table(rows), rows)


def _rules() -> Iterator[tuple[str, type[Rule]]]:
    for name, kind in sorted(vars(rules).items()):
        if isinstance(kind, type) and issubclass(kind, Rule) and kind is not Rule:
            yield name, kind


def _arguments(kind: type[Rule]) -> str:
    shown = []
    for field in dataclasses.fields(kind):
        if field.init:
            default = field.default if field.default is not dataclasses.MISSING else None
            shown.append(field.name if default is None else f"{field.name}={default!r}")
    return ", ".join(shown)


def _one(name: str, thing: Callable[..., Any]) -> Answer:
    text = inspect.getdoc(thing) or ""
    call = f"{name}{inspect.signature(thing)}" if inspect.isfunction(thing) else f"{name}({_arguments(thing)})"  # type: ignore[arg-type]
    return Answer(f"{call}\n\n{text}", {"name": name, "call": call, "description": text})


def _summary(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _table(rows: list[dict[str, str]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="simple", maxcolwidths=[None] * (len(rows[0]) - 1) + [70])
