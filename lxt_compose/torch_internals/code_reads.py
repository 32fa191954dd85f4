"""What the code of a function reads from outside of its arguments: globals, closures, attributes of its class.

Python has no public function that tells globals from attributes; `inspect.getclosurevars` takes both for one.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

_OPAQUE = frozenset({*sys.stdlib_module_names, "torch", "numpy", __name__.partition(".")[0]}) - {"types"}
"""Packages whose objects are not looked into."""
_PLACES = {"site-packages", "dist-packages"}
"""Directories of installed packages."""


def is_opaque(kind: type) -> bool:
    """Return whether objects of a class are not looked into: those of torch, of Python, of this library."""
    module = kind.__module__  # of some classes written in C no string
    return not isinstance(module, str) or module.partition(".")[0] in _OPAQUE


def is_fixed(made: Any) -> bool:
    """Return whether a class, function or module is of an installed package, of torch or of Python."""
    name = made.__name__ if isinstance(made, ModuleType) else getattr(made, "__module__", None)
    return isinstance(name, str) and _is_fixed(name)


@lru_cache(maxsize=4096)
def _is_fixed(name: str) -> bool:
    if name.partition(".")[0] in _OPAQUE:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return isinstance(file, str) and not _PLACES.isdisjoint(Path(file).parts)


@dataclass
class Names:
    """The names that a piece of code uses: of globals, of attributes that it reads, and of those that it sets."""

    read: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)


def names_in(function: FunctionType) -> Names:
    """Return the names that the code of a function uses, and that of the functions written inside of it."""
    return _names_in(function.__code__)


@lru_cache(maxsize=4096)
def _names_in(code: CodeType) -> Names:
    names = Names()
    for instruction in dis.get_instructions(code):
        table = _OPERATIONS.get(instruction.opname)
        if table is not None:
            getattr(names, table).add(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more = _names_in(inner)
            names.read |= more.read
            names.attributes |= more.attributes
            names.stored |= more.stored
    return names


_OPERATIONS = {
    "LOAD_GLOBAL": "read", "LOAD_NAME": "read", "LOAD_ATTR": "attributes", "LOAD_METHOD": "attributes",
    "LOAD_SUPER_ATTR": "attributes", "STORE_ATTR": "stored",
}  # fmt: skip


def cells_of(function: FunctionType) -> tuple[Any, ...]:
    """Return the contents of the closure of a function; None for a variable that has none yet."""
    return tuple(map(_content, function.__closure__ or ()))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def looked_up(function: FunctionType, kind: type | None) -> Iterator[tuple[Any, str]]:
    """Return where the code of a function looks names up, as pairs of a namespace and a name that is in it.

    Args:
        function: the function.
        kind: the class whose method it is; None if there is none.
    """
    names = names_in(function)
    for name in names.read:
        if name in function.__globals__:
            yield function.__globals__, name
            value = function.__globals__[name]
            if isinstance(value, ModuleType) and not is_fixed(value):
                yield from ((vars(value), inside) for inside in names.attributes if inside in vars(value))
    for owner in () if kind is None else kind.__mro__:
        if not is_opaque(owner):
            yield from ((vars(owner), name) for name in names.attributes if name in vars(owner))


def functions_in(value: Any) -> Iterator[FunctionType]:
    """Return the functions that a value stands for: itself, or those behind a descriptor or a wrapper."""
    pending, met = [value], set[int]()
    while pending:
        one = pending.pop()
        if one is None or id(one) in met:
            continue
        met.add(id(one))
        if isinstance(one, FunctionType):
            yield one
            pending.append(getattr(one, "__wrapped__", None))
        elif isinstance(one, property):
            pending += [one.fget]
        elif isinstance(one, (staticmethod, classmethod)):
            pending.append(one.__func__)
        elif not isinstance(one, type):
            pending.append(vars(one).get("__wrapped__") if hasattr(one, "__dict__") else None)
