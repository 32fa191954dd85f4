"""The bias of the layer behind a call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Call
from .layer import LAYER_TYPES
from .recognize import as_function, known_layer, per_channel


def offset_of(call: Call, outputs: list[Tensor]) -> Tensor | None:
    """Return the bias of a layer as it broadcasts to its output; None if it has none.

    Raises:
        LookupError: it is no layer ``W x + b`` of one input.
    """
    module = call.module
    if isinstance(module, LAYER_TYPES) and _computes_as_torch(module):
        bias: Tensor | None = module.bias
        return bias if bias is None else per_channel(bias, module.weight)
    layer = known_layer(call) if len(call.carriers) == 1 else None
    return _value_at_zero(call, outputs) if layer is None else layer.offset


def _computes_as_torch(module: nn.Module) -> bool:
    """Return whether a layer of torch, or of a class derived from one, computes what torch's does."""
    methods = [getattr(type(module), name, None) for name in ("forward", "_conv_forward")]
    own = all(method is None or method.__module__.startswith("torch.nn.modules.") for method in methods)
    return own and "forward" not in vars(module)


def _value_at_zero(call: Call, outputs: list[Tensor]) -> Tensor:
    """Return ``f(0)`` of a module without children, after a test at another point that it is linear."""
    if call.module is None or len(call.carriers) != 1 or len(outputs) != 1 or any(True for _ in call.module.children()):
        raise LookupError(call.where)
    function, x, z = as_function(call), call.values[0].detach(), outputs[0].detach()
    with torch.no_grad():
        bias, elsewhere = function(torch.zeros_like(x)), function(-2 * x)
    resolution = min(0.1, 1e3 * torch.finfo(z.dtype).eps)
    if not torch.allclose(elsewhere + 2 * z, 3 * bias, 0.0, resolution * float(z.abs().max() + bias.abs().max())):
        raise LookupError(call.where)
    return bias
