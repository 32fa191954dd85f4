"""Packages that only some functions need, and that are no dependencies."""

from importlib import import_module
from typing import Any


def needed(module: str, message: str) -> Any:
    """Import a module for a function that cannot do without it.

    Args:
        module: its dotted name.
        message: what needs it, and how it is installed.

    Raises:
        ImportError: it is not installed; says the message.
    """
    try:
        return import_module(module)
    except ImportError:
        raise ImportError(message) from None
