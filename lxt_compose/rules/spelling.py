"""How rules and their arguments are printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any

from torch import Tensor

QUIET: Mapping[str, Any] = {"quiet": True}
"""Metadata of a rule's argument that is printed only where it differs from its default."""


def _is_shown(declared: Field[Any], value: Any) -> bool:
    return not declared.metadata.get("quiet") or value != declared.default


def written(value: Any) -> str:
    """Return a rule, or an argument of one, as one would write it."""
    if isinstance(value, Tensor):
        return f"tensor{tuple(value.shape)}"
    if is_dataclass(value) and not isinstance(value, type):
        given = [(declared, getattr(value, declared.name)) for declared in fields(value)]
        shown = [f"{declared.name}={written(part)}" for declared, part in given if _is_shown(declared, part)]
        return f"{type(value).__name__}({', '.join(shown)})"
    return getattr(value, "__name__", None) or repr(value)
