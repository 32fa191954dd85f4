"""Layers of any kind that are linear in their input: the weight is found by differentiating them, output by output."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import RuleError
from ..base import Call, Rule
from .layer import Layer
from .recognize import as_function, known_layer
from .weight_parts import Parts, absolute, whole

_LARGEST = 2**28
"""Elements that the matrix of a layer may have (1 GiB in float32)."""


def layer_of(rule: Rule, call: Call, z: Tensor) -> Layer:
    """Return the layer behind a call, whatever operations it consists of; z is its output.

    Unknown layers are differentiated, ``W_ji = d z_j / d x_i``, with one backward pass for each output of a sample,
    which is slow but gives the same numbers.

    Raises:
        RuleError: its weights carry relevance, it is not linear in its input, or its matrix would be too large.
    """
    if len(call.carriers) != 1:
        raise RuleError(
            f"{rule} splits the contributions of one input by constant weights, but in {call.where} "
            f"{len(call.carriers)} tensors carry relevance (weights or a bias too); use UniformEpsilon()"
        )
    return replace(known_layer(call) or _differentiated(rule, call, z), made_in=z.dtype)


def _differentiated(rule: Rule, call: Call, z: Tensor) -> Layer:
    function, x = as_function(call), call.values[0].detach()
    with torch.enable_grad():
        start = x.clone().requires_grad_()
        output = function(start)
    if not isinstance(output, Tensor) or output.shape != z.shape or not output.requires_grad:
        raise _not_linear(rule, call, "it is no differentiable function of one tensor to one tensor")

    def pull(slot: Tensor) -> Tensor:
        found = torch.autograd.grad(output, start, slot, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(x) if found is None else found

    blocks = _independent(pull, x, z)
    inputs, outputs = x.numel() // max(1, blocks), z.numel() // max(1, blocks)
    if blocks * inputs * outputs > _LARGEST:
        raise RuleError(
            f"{rule} finds the weight of {call.where} by differentiation, and {outputs} outputs times {inputs} inputs "
            f"in {blocks} blocks are too many; write the layer with F.linear or F.conv2d, or use Epsilon()"
        )
    weight = _matrix(pull, blocks, inputs, outputs, z)
    with torch.no_grad():
        bias = function(torch.zeros_like(x)).detach()
    layer = _dense(call, weight, bias, blocks, x.shape, z.shape)
    _check(rule, call, layer, function, x, z)
    return layer


def _noise(like: Tensor) -> Tensor:
    """Return numbers in [-1, 1] without a pattern, without drawing from the global random generator."""
    count = torch.arange(1, like.numel() + 1, device=like.device, dtype=torch.float64)
    return count.square().sin().to(like.dtype).reshape(like.shape)


def _independent(pull: Callable[[Tensor], Tensor], x: Tensor, z: Tensor) -> int:
    """Return the number of blocks (samples, positions), along leading dimensions, that the layer does not mix.

    Blocks are numbered in binary. For each digit, the gradient from blocks with digit 1 must be 0 at blocks with digit
    0, and vice versa. Any two blocks differ in some digit, so this finds every mixing.
    """
    common = 0
    while common < min(x.dim(), z.dim()) and x.shape[common] == z.shape[common]:
        common += 1
    for dims in range(common, 0, -1):
        blocks = math.prod(x.shape[:dims])
        number, noise = torch.arange(blocks, device=x.device), _noise(z)
        digits = [(number >> place) & 1 == value for place in range((blocks - 1).bit_length()) for value in (0, 1)]
        if not any(_leaks(pull, noise, digit, x) for digit in digits):
            return blocks
    return 1


def _leaks(pull: Callable[[Tensor], Tensor], noise: Tensor, chosen: Tensor, x: Tensor) -> bool:
    slot = noise.reshape(len(chosen), -1) * chosen[:, None]
    found = pull(slot.reshape(noise.shape)).reshape(len(chosen), -1)
    return bool((found * ~chosen[:, None]).any())


def _matrix(pull: Callable[[Tensor], Tensor], blocks: int, inputs: int, outputs: int, z: Tensor) -> Tensor:
    """Return the weight, (outputs, inputs) if all blocks have the same, else (blocks, outputs, inputs)."""
    rows = []
    for index in range(outputs):
        slot = z.new_zeros(blocks, outputs)
        slot[:, index] = 1
        rows.append(pull(slot.reshape(z.shape)).reshape(blocks, inputs))
    weight = torch.stack(rows, 1) if rows else z.new_zeros(blocks, 0, inputs)
    return weight[0].clone() if blocks and (weight == weight[:1]).all() else weight


def _dense(call: Call, weight: Tensor, bias: Tensor, blocks: int, x_shape: torch.Size, z_shape: torch.Size) -> Layer:
    outputs, inputs = weight.shape[-2:]

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        z = (weight @ x.reshape(blocks, inputs, 1)).reshape(z_shape)
        return z if bias is None else z + bias

    def back(s: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        return (weight.mT @ s.reshape(blocks, outputs, 1)).reshape(x_shape)

    parts = Parts() if call.parts is None else call.parts
    return Layer(call.where, parts, weight, weight._version, apply, back, bias, bias, tuple(x_shape), unit=_connected)


def _connected(weight: Tensor) -> Tensor:
    """Return 1 where an input reaches an output."""
    return (weight != 0).to(weight.dtype)


def _check(rule: Rule, call: Call, layer: Layer, function: Callable[[Tensor], Tensor], x: Tensor, z: Tensor) -> None:
    """Raise unless the function is ``W x + b`` at x, and at points on the other side of 0 as well."""
    resolution = min(0.1, 1e3 * torch.finfo(z.dtype).eps)
    noise = _noise(x) * x.abs().max() if x.numel() else x
    for point in (x, noise - x, 3 * noise + x):
        with torch.no_grad():
            actual = function(point)
        expected = layer.product(point.to(layer.dtype), whole, whole)
        scale = layer.product(point.to(layer.dtype).abs(), absolute) + expected.abs()
        if not ((actual - expected).abs() <= resolution * scale).all():
            raise _not_linear(rule, call, "it is not W x + b with the same W everywhere")


def _not_linear(rule: Rule, call: Call, why: str) -> RuleError:
    return RuleError(
        f"{rule} fits layers that are linear in their input, and {call.where} is not: {why}; use Identity() for an "
        f"activation, Norm() for a normalization, and Epsilon() for any other differentiable module"
    )
