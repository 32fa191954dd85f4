"""Private parts of torch that have to do with graphs: what is written down by `make_fx`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_PROXY = torch._C._TorchDispatchModeKey.PROXY


def is_traced() -> bool:
    """Whether what runs is written down as a graph (`make_fx`), so that nothing can depend on the values of tensors.

    `torch.fx.experimental.proxy_tensor.get_proxy_mode()` says the same, but takes a second to import. Unnecessary once
    `torch.compiler.is_compiling()` is true under `make_fx` too.
    """
    return torch._C._get_dispatch_mode(_PROXY) is not None


def has_symbolic_shape(tensor: Tensor) -> bool:
    """Whether the shape of a tensor is a formula: a graph for all shapes is being written down.

    Unnecessary once tensors tell it publicly.
    """
    return bool(tensor._has_symbolic_sizes_strides)


def cond(condition: Tensor, then: Callable[..., Tensor], otherwise: Callable[..., Tensor], given: Any) -> Tensor:
    """Return ``then(*given)`` or ``otherwise(*given)`` as one operation of a graph that is being written down.

    Neither may change what is given, or use another tensor. `torch.cond` is the public form; it compiles both branches
    by dynamo, which does not know the objects of this library.
    """
    result: Tensor = torch.ops.higher_order.cond(condition, then, otherwise, tuple(given))
    return result
