"""What decides how torch computes beside a model and its inputs: autocast, the default dtype, modes of the user."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from . import function_modes

_DEVICES = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind)]
_NAMES = ("autocast", "the default dtype", "the stack of torch function modes")


def ambient() -> tuple[Any, ...]:
    """Return what operations depend on beside their arguments."""
    return _autocast() if is_autocast() else (), torch.get_default_dtype(), tuple(map(_kind_of, function_modes()))


def difference(before: tuple[Any, ...]) -> str:
    """Return in words what is another now; empty if nothing is."""
    now = ambient()
    pairs = zip(_NAMES, now, before, strict=True)
    return next(
        (f"{name} was {then or 'off'} and is {this or 'off'}" for name, this, then in pairs if this != then), ""
    )


def _autocast() -> tuple[str, ...]:
    return tuple(f"{kind} in {torch.get_autocast_dtype(kind)}" for kind in _DEVICES if torch.is_autocast_enabled(kind))


def is_autocast() -> bool:
    """Return whether autocast is on for any kind of device; torch has no public function that asks for all."""
    return bool(torch._C._is_any_autocast_enabled())


def _kind_of(mode: Any) -> str:
    return f"{type(mode).__name__}({getattr(mode, 'device', '')})"


@contextmanager
def without_autocast() -> Iterator[None]:
    """Leave dtypes as they are: a graph has the casts of autocast as operations."""
    with ExitStack() as stack:
        for kind in _DEVICES if is_autocast() else ():
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def drawn() -> tuple[Any, ...]:
    """Return the states of the random numbers of Python and numpy, to compare with later ones."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return (random.getstate(),)
    state = numpy.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2:]
