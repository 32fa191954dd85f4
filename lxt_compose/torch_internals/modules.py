"""The private parts of ``nn.Module``: its tables of hooks and buffers, which torch lists nowhere publicly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def pre_hooks_of(module: nn.Module) -> list[Any]:
    """Return the forward pre-hooks of a module; torch has no public list of them."""
    return list(module._forward_pre_hooks.values())


def hooks_of(module: nn.Module) -> list[Any]:
    """Return all forward hooks and pre-hooks of a module."""
    return [*pre_hooks_of(module), *module._forward_hooks.values()]


def remove_hooks(module: nn.Module, unwanted: Any) -> None:
    """Remove a function from the forward hooks of a module, in each of torch's tables.

    Needed in copies of a model: a handle that could remove the hook belongs to the original.
    """
    marks = (
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    )
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for number in [number for number, hook in hooks.items() if hook is unwanted]:
            for kept in (hooks, *marks):
                kept.pop(number, None)


def clear_hooks(module: nn.Module) -> None:
    """Take all forward hooks off a copy of a module: handles that could remove them belong to the original."""
    for part in module.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module was compiled in place, by ``module.compile()``."""
    return getattr(module, "_compiled_call_impl", None) is not None


def buffers_of(module: nn.Module) -> Iterator[dict[str, Tensor | None]]:
    """Yield the tables of buffers of a module and of those inside it: what runs may put other tensors there."""
    for part in module.modules():
        yield part._buffers
