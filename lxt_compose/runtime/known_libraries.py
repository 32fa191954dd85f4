"""Operations of other libraries: quantized layers, sharding, adapters.

They are registered by dotted names, so none of the libraries is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd.saved_values import rescue
from ..ops import Family, Traits, register
from ..torch_internals import modes_off


def by_identity(kernel: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Compute a linear layer from the weight that its kernel gives for the identity matrix.

    A kernel ``f(x) = x W^T + b`` over the last dimension gives ``b = f(0)`` and ``W^T = f(I) - b``. That costs what
    a batch of as many rows as the layer has inputs does.
    """
    with torch.no_grad():
        rows = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        bias = kernel(torch.zeros_like(rows[:1]), *args, **kwargs)[0]
        weight = torch.cat([kernel(some, *args, **kwargs) - bias for some in rows.split(_ROWS)]).T
    return F.linear(x, weight, bias if bias.any() else None)


_ROWS = 256
"""Rows of the identity that a kernel is given at a time."""


def _four_bits(x: Tensor, packed: Tensor, out: Any = None, bias: Tensor | None = None, state: Any = None) -> Tensor:
    """Return ``bitsandbytes.autograd._functions.MatMul4Bit``, with its weight dequantized."""
    weight = import_module("bitsandbytes.functional").dequantize_4bit(packed.reshape(-1, 1), state)
    return F.linear(x, weight.to(x.dtype), bias)


def _eight_bits(x: Tensor, weight: Tensor, out: Any = None, bias: Tensor | None = None, state: Any = None) -> Tensor:
    """Return ``bitsandbytes.autograd._functions.MatMul8bitLt``, its int8 weight times a scale per row."""
    if state is None or state.CB is None:
        return F.linear(x, weight.to(x.dtype), bias)
    return F.linear(x, state.CB.to(x.dtype) * (state.SCB / 127).unsqueeze(1).to(x.dtype), bias)


def _operator(name: str) -> Callable[..., Any]:
    """Return the function that calls an operator of a library, which may be loaded later."""

    def call(*args: Any, **kwargs: Any) -> Any:
        library, _, operator = name.removeprefix("torch.ops.").partition(".")
        return getattr(getattr(torch.ops, library), operator)(*args, **kwargs)

    return call


def _summed_in_place(x: Tensor, group: Any = None) -> Tensor:
    """Return what transformers' ``_AllReduceForward`` writes into x: its sum over all processes of a group.

    The tensors of the other processes are constants here.
    """
    with modes_off():
        rescue(x)  # the kernel is about to change it
        total = x.detach().clone()
        torch.distributed.all_reduce(total, group=group)
        others = total - x.detach()
    return x.clone() + others


def _masked_softmax(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Return the ``XSoftmax`` of SEW-D, and of DeBERTa in older versions: softmax where the mask is not 0, else 0."""
    off = ~mask.to(torch.bool)
    return x.masked_fill(off, torch.finfo(x.dtype).min).softmax(dim).masked_fill(off, 0)


def _collisions(
    query_mask: Tensor, key_mask: Tensor, query: Tensor, key: Tensor, value: Tensor, config: dict[str, Any]
) -> Tensor:
    """Return transformers' ``YosoCumulation``: values weighted by how likely hashes of query and key collide."""
    likely = (1 - torch.acos(query @ key.transpose(-1, -2)) / math.pi) ** config["hash_code_len"]
    return (likely * query_mask[:, :, None] * key_mask[:, None, :]) @ value


def _scan(decay: Tensor, x: Tensor) -> Tensor:
    """Return mambapy's ``PScan``, step by step: ``h_t = a_t h_(t-1) + x_t`` along the second dimension."""
    states = [x[:, 0]]
    for t in range(1, x.shape[1]):
        states.append(decay[:, t] * states[-1] + x[:, t])
    return torch.stack(states, 1)


_FUNCTIONS = "bitsandbytes.autograd._functions"
_LAYERS: dict[str, Callable[..., Any]] = (
    {
        f"{_FUNCTIONS}.MatMul4Bit": _four_bits,
        f"{_FUNCTIONS}.MatMul8bitLt": _eight_bits,
        f"{_FUNCTIONS}.MatMul8bitFp": _eight_bits,
    }
    | {
        name: partial(by_identity, _operator(name))
        for name in (
            "torch.ops.bitsandbytes.gemv_4bit",
            "torch.ops.bitsandbytes.gemm_4bit",
            "torch.ops.quantized.linear_dynamic",
            "torch.ops.quantized.linear_dynamic_fp16",
        )
    }
    | {"transformers.distributed.parallel_utils._AllReduceForward": _summed_in_place}
)
_IDENTITIES = (
    "torch.nn.parallel.distributed._DDPSink",
    "torch.distributed.fsdp._fully_shard._fsdp_state.RegisterPreBackwardFunction",
    "torch.distributed.fsdp._fully_shard._fsdp_param_group.RegisterPostBackwardFunction",
    "torch.distributed.tensor._api._ToTorchTensor",
    "torch.distributed.tensor._api._FromTorchTensor",
    "torch.distributed.tensor._redistribute.Redistribute",
    "transformers.distributed.parallel_utils._WaitTensor",
    "transformers.integrations.tensor_parallel._AllReduceBackward",
    "transformers.distributed.parallel_utils._AllReduceBackward",
)
_SOFTMAX = tuple(
    f"{library}.{name}"
    for library, names in {
        "pytorch_tabnet.sparsemax": ("SparsemaxFunction", "Entmax15Function"),
        "entmax.activations": ("SparsemaxFunction", "Entmax15Function"),
    }.items()
    for name in names
)
"""Weights p that sum to 1 as a softmax's do, with a gradient of their own: ``R_x = x * J^T (R_p / p)``."""
_LINEAR = tuple(
    f"torch.distributed.nn.functional.{name}"
    for name in (
        "_AllGather",
        "_AllGatherBase",
        "_AllReduce",
        "_AlltoAll",
        "_AlltoAllSingle",
        "_Broadcast",
        "_Gather",
        "_Reduce",
        "_Reduce_Scatter",
        "_Scatter",
    )
)


def register_known() -> None:
    """Register the operations of the libraries that are known."""
    for name, steps in _LAYERS.items():
        register(name, Family.LINEAR, steps=steps)
    models = "transformers.models"
    for model in ("deberta", "deberta_v2", "sew_d"):
        name = f"{models}.{model}.modeling_{model}.XSoftmax"
        register(name, Family.SOFTMAX, steps=_masked_softmax)
    register(f"{models}.yoso.modeling_yoso.YosoCumulation", Family.CONTRACTION, steps=_collisions)
    rooted = f"{models}.recurrent_gemma.modeling_recurrent_gemma.SqrtBoundDerivative"
    register(rooted, Family.ACTIVATION, steps=torch.sqrt)  # its own gradient has a bound
    register("mambapy.pscan.PScan", Family.CONTRACTION, steps=_scan)
    for name in _SOFTMAX:
        register(name, Family.SOFTMAX, traits=Traits(spoils_inputs=True))  # sparsemax subtracts the maximum in place
    for name in ("roi_align", "ps_roi_align", "ps_roi_pool"):
        register(f"torch.ops.torchvision.{name}", Family.LINEAR, held=(1, "rois"))
    register("torch.ops.torchvision.roi_pool", Family.MOVEMENT)
    register("torch.ops.torchvision.deform_conv2d", Family.CONTRACTION, held=(2, "offset"), bias=(4, "bias"))
    for name in _IDENTITIES:
        register(name, Family.MOVEMENT)
    for name in _LINEAR:
        register(name, Family.LINEAR)
