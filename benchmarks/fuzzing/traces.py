"""All of a model, and of this thread, that a registration could leave a trace on."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.overrides import _get_current_function_mode_stack


def fingerprint(model: nn.Module) -> dict[Any, Any]:
    """Equal before and after: objects by identity, flags, hooks, values' versions, modes that are on."""
    found: dict[Any, Any] = {"state_dict": list(model.state_dict()), "modes": len(_get_current_function_mode_stack())}
    for path, module in model.named_modules(remove_duplicate=False):
        found[path, "itself"] = id(module), type(module), module.training
        for name, value in vars(module).items():
            inside = [(key, id(entry)) for key, entry in value.items()] if isinstance(value, dict) else []
            found[path, name] = id(value) if not isinstance(value, (int, float, str)) else value, inside
    for path, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        found[path, "tensor"] = id(tensor), tensor.requires_grad, id(tensor.grad), tensor.data_ptr(), tensor._version
        found[path, "hooks"] = len(getattr(tensor, "_backward_hooks", None) or ())
    return found
