"""Copies and pickles of a registered model, with empty hooks and the parameters' own flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..torch_internals import remove_hooks


def empty_hook(module: nn.Module, *_: Any) -> None:
    """Do nothing: a copy has this in the place of the original's hook, and its first call removes it."""
    sweep(module)


def sweep(module: nn.Module) -> None:
    """Remove the empty hooks from one module."""
    remove_hooks(module, empty_hook)


def restored_flags(parameters: list[nn.Parameter], flags: list[bool]) -> Callable[..., None]:
    """Give the copied parameters the flags that the original had before it was registered, and an empty hook."""
    for parameter, flag in zip(parameters, flags, strict=True):
        parameter.requires_grad_(flag)
    return empty_hook
