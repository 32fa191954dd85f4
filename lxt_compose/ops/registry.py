"""Registered operations that are not torch's: those of users and of other libraries."""

import sys
from collections.abc import Iterator
from typing import Any

from torch.autograd import Function

from .families import Op

_BY_OBJECT: dict[Any, Op] = {}
_BY_NAME: dict[str, Op] = {}
"""By dotted name: ``torch.ops.<library>.<name>``, or module and class of an autograd function."""


def store(function: Any, op: Op) -> None:
    """Store an operation under its function, its autograd function, or the dotted name of one."""
    if isinstance(function, str):
        _BY_NAME[function] = op
        return
    packet = getattr(function, "overloadpacket", function)
    overloads = packet.overloads() if hasattr(packet, "overloads") else ()
    for form in (function, packet, *(getattr(packet, overload) for overload in overloads)):
        _BY_OBJECT[form] = op


def registered(function: Any) -> Op | None:
    """Return the operation that a function or an autograd function is registered as, or None."""
    function = getattr(function, "autograd_function", function)
    if function in _BY_OBJECT:
        return _BY_OBJECT[function]
    return _BY_NAME.get(dotted_name(function)) if _BY_NAME else None


def dotted_name(function: Any) -> str:
    """Return the dotted name that an operator or an autograd function can be registered by; else an empty one."""
    if is_autograd_function(function):
        return f"{function.__module__}.{function.__qualname__}"
    return f"torch.ops.{getattr(function, 'overloadpacket', function)}" if is_operator(function) else ""


def is_operator(function: Any) -> bool:
    """Return whether this is an operator of another library than torch: ``torch.ops.<library>.<name>``."""
    return type(function).__module__ == "torch._ops" and not str(function).startswith(("aten.", "prim."))


def is_autograd_function(function: Any) -> bool:
    """Return whether this is a class derived from :class:`torch.autograd.Function`."""
    return isinstance(function, type) and issubclass(function, Function)


def function_of_apply(function: Any) -> Any:
    """Return the autograd function whose ``apply`` this is; anything else as it is."""
    owner = getattr(function, "__self__", None)
    return owner if getattr(function, "__name__", "") == "apply" and is_autograd_function(owner) else function


def autograd_functions() -> Iterator[type[Function]]:
    """Yield the registered autograd functions; those registered by name if their module is imported."""
    yield from (function for function in _BY_OBJECT if is_autograd_function(function))
    for name in _BY_NAME:
        module, _, kind = name.rpartition(".")
        found: Any = getattr(sys.modules.get(module), kind, None)
        if is_autograd_function(found):
            yield found
