"""Copies and pickles of a registered model: their hooks are empty, and their parameters get their flags back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..torch_internals import remove_hooks


def empty_hook(module: nn.Module, *_: Any) -> None:
    """Stand in a copy where the original has a hook; the first call removes it."""
    sweep(module)


def sweep(module: nn.Module) -> None:
    """Remove the empty hooks from one module."""
    remove_hooks(module, empty_hook)


def restored_flags(parameters: list[nn.Parameter], flags: list[bool]) -> Callable[..., None]:
    """Give the copied parameters the flags that the original had before it was registered, and an empty hook."""
    for parameter, flag in zip(parameters, flags, strict=True):
        parameter.requires_grad_(flag)
    return empty_hook
