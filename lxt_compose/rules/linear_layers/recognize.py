"""Recognition of the layer behind a call, by its function or the type of its module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...autograd.trees import map_tensors
from ...ops import LayerKind
from ...torch_internals import modes_off, pre_hooks_of
from ..base import Call
from .layer import Apply, Back, Layer
from .trial import without_effect
from .weight_parts import Parts, mean_of_rows

# Modules that are nothing but one call of this function.
_FUNCTIONS: dict[type[nn.Module], tuple[Callable[..., Tensor], LayerKind]] = {
    nn.Linear: (F.linear, LayerKind.LINEAR),
    nn.Conv1d: (F.conv1d, LayerKind.CONVOLUTION),
    nn.Conv2d: (F.conv2d, LayerKind.CONVOLUTION),
    nn.Conv3d: (F.conv3d, LayerKind.CONVOLUTION),
}
_POOL_TYPES = (nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd)


def _layer(call: Call, weight: Tensor, apply: Apply, *, shape: tuple[int, ...] | None = None, **fields: Any) -> Layer:
    shape = tuple(call.values[0].shape) if shape is None else shape
    parts = Parts() if call.parts is None else call.parts
    return Layer(call.where, parts, weight, weight._version, apply, one_sample=shape, **fields)


def known_layer(call: Call) -> Layer | None:
    """Return the layer behind a call with one carrier, if its function or module type is known; else None."""
    if call.module is not None:
        return _of_module(call, call.module)
    kind = call.op.traits.layer if call.op is not None else None
    return None if kind is None else _BY_KIND[kind](call)


def plain_layer(call: Call, *, rounded: bool) -> Layer | None:
    """Return the linear layer or convolution behind a call, if the rule can do without the operation's own graph.

    None for other layers, for complex numbers, and, unless `rounded` is set, in half precision, where that graph is
    more exact.
    """
    kind = call.op.traits.layer if call.op is not None else None
    if len(call.carriers) != 1 or (call.module is None and kind not in _WEIGHTED):
        return None
    layer = known_layer(call)
    if layer is None or layer.back is None or not layer.samples or (layer.dtype != layer.weight.dtype and not rounded):
        return None
    return None if layer.weight.is_complex() or call.carriers[0].is_complex() else layer


def _of_module(call: Call, module: nn.Module) -> Layer | None:
    if type(module) in _FUNCTIONS:
        return _of_plain_module(call, module, *_FUNCTIONS[type(module)])
    if isinstance(module, _POOL_TYPES):
        return _pool(call)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training:
        return _batch_norm(call, module.running_mean, module.running_var, module.weight, module.bias, module.eps)
    return None


def _of_plain_module(call: Call, module: nn.Module, function: Callable[..., Tensor], kind: LayerKind) -> Layer | None:
    """Return the layer of a module of torch whose forward is torch's own."""
    own = "forward" not in vars(module) and len(pre_hooks_of(module)) <= 1  # one is the registration's
    if not own or len(call.args) != 1 or call.kwargs or getattr(module, "padding_mode", "zeros") != "zeros":
        return None
    options = ("stride", "padding", "dilation", "groups") if kind is not LayerKind.LINEAR else ()
    args = (*call.args, module.weight, module.bias, *(getattr(module, name) for name in options))
    plain = Call(call.formulation, call.where, args, {}, function=function, parts=call.parts)
    plain.take(call.carriers)
    return _weight_layer(kind, plain)


def given(call: Call, position: int, name: str) -> Any:
    """Return an argument of the call, by its position or its name; None where it is left out."""
    return call.args[position] if position < len(call.args) else call.kwargs.get(name)


def as_function(call: Call) -> Callable[[Tensor], Any]:
    """Return the call as a function of its one carrier, which it does not keep."""
    function = call.function if call.module is None else call.module.forward
    assert function is not None
    hole = torch.empty(0)
    args, kwargs = map_tensors(lambda t: hole if t.requires_grad else t, (call.args, call.kwargs))

    def of(x: Tensor) -> Any:
        filled_args, filled_kwargs = map_tensors(lambda t: x if t is hole else t, (args, kwargs))
        # This run is not a part of the model, so no function mode may see it.
        with modes_off(), without_effect(call.module):
            return function(*filled_args, **filled_kwargs)

    return of


def _weight_layer(kind: LayerKind, call: Call) -> Layer | None:
    """Return the layer of ``function(input, weight, bias, ...)``: F.linear, F.conv1d ... F.conv_transpose3d."""
    weight, bias = given(call, 1, "weight"), given(call, 2, "bias")
    function = call.function
    assert function is not None
    if given(call, 0, "input") is not call.carriers[0]:
        return None
    rest = call.args[3:]
    options = {key: value for key, value in call.kwargs.items() if key not in ("input", "weight", "bias")}

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = function(x, weight, bias, *rest, **options)
        return result

    shape = call.values[0].shape
    if kind is LayerKind.LINEAR:
        linear_back = _linear_back if weight.dim() == 2 else None
        return _layer(call, weight, apply, back=linear_back, bias=bias, offset=bias, shape=tuple(shape[-1:]),
                      samples=len(shape) > 1)  # fmt: skip
    batched = len(shape) == weight.dim()
    if batched:
        shape = torch.Size((1, *shape[1:]))
    offset = None if bias is None else per_channel(bias, weight)
    back = _convolution_back(kind, rest, options, weight)
    return _layer(call, weight, apply, back=back, bias=bias, offset=offset, shape=tuple(shape), samples=batched)


def per_channel(bias: Tensor, weight: Tensor) -> Tensor:
    """Return the bias of a layer as it broadcasts to the output, with and without a batch dimension."""
    return bias.reshape(-1, *[1] * (weight.dim() - 2)) if weight.dim() > 2 else bias


def _linear_back(s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return s @ weight


def _convolution_back(kind: LayerKind, rest: tuple[Any, ...], options: dict[str, Any], weight: Tensor) -> Back | None:
    transposed, spatial = kind is LayerKind.TRANSPOSED_CONVOLUTION, weight.dim() - 2
    names = ("stride", "padding", "output_padding", "groups", "dilation") if transposed else (
        "stride", "padding", "dilation", "groups")  # fmt: skip
    chosen = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0}
    chosen |= dict(zip(names, rest, strict=False)) | options
    sizes = {key: _per_dimension(chosen[key], spatial) for key in ("stride", "dilation", "output_padding")}
    padding = _padding(chosen["padding"], sizes["dilation"], weight)
    if padding is None:
        return None

    def back(s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        batched = x.dim() == weight.dim()
        s, x = (s, x) if batched else (s.unsqueeze(0), x.unsqueeze(0))
        slot: Tensor = torch.ops.aten.convolution_backward(
            s, x, weight, None, sizes["stride"], padding, sizes["dilation"], transposed, sizes["output_padding"],
            chosen["groups"], [True, False, False],
        )[0]  # fmt: skip
        return slot if batched else slot.squeeze(0)

    return back


def _per_dimension(value: Any, spatial: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list, torch.Size)) else [value]
    return values * spatial if len(values) == 1 else values


def _padding(padding: Any, dilation: list[int], weight: Tensor) -> list[int] | None:
    """Return padding as numbers.

    None for "same" where it differs between the two sides, for which no backward kernel exists.
    """
    if not isinstance(padding, str):
        return _per_dimension(padding, len(dilation))
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    return None if any(size % 2 for size in total) else [size // 2 for size in total]


def _addmm(call: Call) -> Layer | None:
    """Return ``beta * input + alpha * mat1 @ mat2``, in which mat1 carries relevance."""
    bias, weight = given(call, 0, "input"), given(call, 2, "mat2")
    if given(call, 1, "mat1") is not call.carriers[0]:
        return None
    alpha, beta = call.kwargs.get("alpha", 1), call.kwargs.get("beta", 1)
    weight, bias = weight if alpha == 1 else weight * alpha, bias if beta == 1 else bias * beta

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x @ weight if bias is None else torch.addmm(bias, x, weight)

    shape = tuple(call.values[0].shape[-1:])
    samples = not isinstance(bias, Tensor) or bias.dim() < 2  # a matrix is added as it is, not to a part of the output
    return _layer(call, weight, apply, back=_matrix_back, bias=bias, offset=bias, shape=shape, samples=samples)


def _matrix_back(s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    return s @ weight.mT


def _matrices(call: Call) -> Layer | None:
    """Return a product of two matrices (or vectors, or batches of them), one of which is constant."""
    operands = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    reduce = given(call, 2, "reduce")  # of a product with a sparse matrix: sums or means over its rows
    averages = reduce == "mean"
    if len(operands) != 2 or not (averages or reduce is None or reduce == "sum"):
        return None
    function = call.function.args[0] if isinstance(call.function, partial) else call.function
    turned = not call.args and next(iter(call.kwargs)) not in ("input", "self")
    if turned or getattr(function, "__name__", "") == "__rmatmul__":
        operands.reverse()
    x = call.carriers[0]
    if operands[0] is x:
        weight, shape = operands[1], tuple(x.shape[-1:])
        known = weight.dim() == 2
        back = _matrix_back if known else None
        samples = known and x.dim() > 1
        return _layer(
            call, weight, lambda x, w, b: torch.matmul(x, w), back=back, shape=shape if known else None, samples=samples
        )
    weight = mean_of_rows(operands[0]) if averages else operands[0]
    return _layer(call, weight, lambda x, w, b: torch.matmul(w, x))


def _einsum(call: Call) -> Layer | None:
    """Return an einsum of two operands, one of which is constant."""
    if len(call.args) != 3:
        return None
    equation, first, second = call.args
    if first is call.carriers[0]:
        return _layer(call, second, lambda x, w, b: torch.einsum(equation, x, w))
    return _layer(call, first, lambda x, w, b: torch.einsum(equation, w, x))


def _pool(call: Call) -> Layer:
    """Return the layer of a mean or a sum, whose coefficients are equal and positive: one number stands for all."""
    function = as_function(call)
    return _layer(call, call.values[0].new_ones(()), lambda x, w, b: function(x) * w)


def _batch_norm_call(call: Call) -> Layer | None:
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (given(call, place, name) for place, name in enumerate(names, 1))
    if given(call, 5, "training") or mean is None or given(call, 0, "input") is not call.carriers[0]:
        return None
    eps = given(call, 7, "eps")
    return _batch_norm(call, mean, variance, weight, bias, 1e-5 if eps is None else eps)


def _batch_norm(
    call: Call, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Layer | None:
    """Return batch norm with fixed statistics as a layer: one weight and one bias for each channel."""
    if mean is None or variance is None:
        return None
    shape = (-1, *[1] * (call.values[0].dim() - 2))
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = ((0 if bias is None else bias) - mean * scale).reshape(shape)
    return _layer(
        call, scale.reshape(shape), lambda x, w, b: x * w if b is None else x * w + b,
        back=lambda s, w, x: s * w, bias=shift, offset=shift, shape=(1, *call.values[0].shape[1:]),
    )  # fmt: skip


_WEIGHTED = (LayerKind.LINEAR, LayerKind.CONVOLUTION, LayerKind.TRANSPOSED_CONVOLUTION)
_BY_KIND: dict[LayerKind, Callable[[Call], Layer | None]] = {
    **{kind: partial(_weight_layer, kind) for kind in _WEIGHTED},
    LayerKind.ADDMM: _addmm,
    LayerKind.MATRIX_PRODUCT: _matrices,
    LayerKind.EINSUM: _einsum,
    LayerKind.AVERAGE: _pool,
    LayerKind.BATCH_NORM: _batch_norm_call,
}
