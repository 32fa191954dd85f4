"""The lists of presets and rules."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from tabulate import tabulate

from .. import presets, rules
from ..rules import Rule
from .answer import Answer

_NAME, _SHORT = 32, {"formulations": "form"}


def list_presets(name: str | None = None, *, width: int = 100) -> Answer:
    """Return all presets with one line each, or one of them in full.

    Raises:
        ValueError: there is no such preset.
    """
    if name is not None:
        return _one(name, presets.find(name))
    rows = [{"name": preset, "summary": _summary(presets.find(preset))} for preset in presets.available()]
    return Answer(_table(rows, width), rows)


def list_rules(name: str | None = None, *, width: int = 100) -> Answer:
    """Return all rules with their arguments and one line each, or one of them in full.

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
            "summary": _summary(kind) if rule == kind.__name__ else f"Another name of {kind.__name__}, as in LXT.",
        }
        for rule, kind in found.items()
    ]
    shown = [{**row, "formulations": "both" if "," in row["formulations"] else row["formulations"]} for row in rows]
    return Answer(_table([{_SHORT.get(key, key): cell for key, cell in row.items()} for row in shown], width), rows)


def _rules() -> Iterator[tuple[str, type[Rule]]]:
    for name in sorted(rules.__all__):
        kind = getattr(rules, name)
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
    text = _plain(inspect.getdoc(thing) or "")
    call = f"{name}{_signature(thing)}" if inspect.isfunction(thing) else f"{name}({_arguments(thing)})"  # type: ignore[arg-type]
    return Answer(f"{call}\n\n{text}", {"name": name, "call": call, "description": text})


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the arguments and their defaults, without types, which the text names."""
    found = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found.parameters.values()]
    return inspect.Signature(bare)


def _summary(thing: Any) -> str:
    return _plain((inspect.getdoc(thing) or "").partition("\n")[0])


def _plain(text: str) -> str:
    """Return a docstring without its markup."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")


def _table(rows: list[dict[str, str]], width: int) -> str:
    """Return the rows as a table of at most `width` columns; the last column takes the rest of the width."""
    limits: list[int] = [min(max(len(row[key]) for row in rows), _NAME) for key in list(rows[0])[:-1]]
    last = max(width - sum(limits) - 2 * len(limits), 24)
    return tabulate(rows, headers="keys", tablefmt="simple", maxcolwidths=[*limits, last])
