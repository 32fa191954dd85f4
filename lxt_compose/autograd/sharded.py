"""Tensors and parameters that several processes of torch.distributed hold together."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, distributed, nn


def is_distributed() -> bool:
    """Return whether this process is one of several that work together."""
    return distributed.is_available() and distributed.is_initialized()


def is_sharded(x: Any) -> bool:
    """Return whether this is a :class:`torch.distributed.tensor.DTensor`, which torch 2.4 does not have there yet."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(x, kind)


def added_up(x: Tensor) -> Tensor:
    """Return the tensor added up over the processes, if each one holds a summand of it.

    Without that neither signs nor quotients are known, and the tensor cannot be changed in place.
    """
    if not is_sharded(x):
        return x
    sharded: Any = x
    if not any(placement.is_partial() for placement in sharded.placements):
        return x
    whole = sys.modules["torch.distributed.tensor"].Replicate()
    return sharded.redistribute(placements=[whole if kind.is_partial() else kind for kind in sharded.placements])


def whole(x: Tensor) -> Tensor:
    """Return what all processes hold together, as a plain tensor in each of them."""
    sharded: Any = x
    return sharded.full_tensor() if is_sharded(x) else x


def in_each_process(x: Tensor, like: Tensor) -> Tensor:
    """Return a plain tensor, equal in each process, as a DTensor on the same processes as another one."""
    other: Any = like
    library = sys.modules["torch.distributed.tensor"]
    everywhere = [library.Replicate()] * other.device_mesh.ndim
    return library.DTensor.from_local(x, other.device_mesh, everywhere, run_check=False)


def local(x: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, in the same memory."""
    sharded: Any = x
    return sharded.to_local() if is_sharded(x) else x


def comes_and_goes(module: nn.Module) -> bool:
    """Return whether a module is fully sharded, so that its parameters are whole only while it runs."""
    library = sys.modules.get("torch.distributed.fsdp")
    if library is None:
        return False
    kinds = [getattr(library, name, None) for name in ("FSDPModule", "FullyShardedDataParallel")]
    return isinstance(module, tuple(kind for kind in kinds if kind is not None))
