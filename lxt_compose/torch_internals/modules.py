"""The private parts of ``nn.Module``: tables of hooks, parameters and buffers, for which torch has no public list."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
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
    """Return whether a module was compiled, by ``module.compile()`` or ``torch.compile(module)``."""
    return getattr(module, "_compiled_call_impl", None) is not None or isinstance(module, torch._dynamo.OptimizedModule)


def eager(module: nn.Module) -> nn.Module:
    """Return the module behind ``torch.compile(module)``; any other module itself.

    Unnecessary once compiled modules tell their original publicly.
    """
    original = getattr(module, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else module


def run_with_weight(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """Run the forward of a layer on an input with another weight, which may require grad.

    No hook of the layer runs. `torch.func.functional_call` is the public form, and runs them.
    """
    alone = copy.copy(module)
    vars(alone)["_parameters"] = {**module._parameters, "weight": weight}
    output: Tensor = type(module).forward(alone, x)
    return output


def buffers_of(module: nn.Module) -> Iterator[dict[str, Tensor | None]]:
    """Yield the tables of buffers of a module and of those inside it, into which a forward may put other tensors."""
    for part in module.modules():
        yield part._buffers
