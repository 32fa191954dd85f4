"""What a rule keeps of the relevance that arrives: kinds of absorption, and the constant part of an operation.

:meth:`Rule.absorbed` gives the amounts by the kinds of this file, for the ledger and the conservation check.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..autograd.numerics import Stabilizing, stabilize
from ..ops import Family
from .base import OpCall
from .linear_layers.layer import LAYER_TYPES

BIAS, CONSTANT, SOFTMAX, STABILIZER = "bias", "constant", "softmax", "stabilizer"
NORM, HIGHER_ORDERS, RULE, UNCOVERED = "norm", "higher orders", "rule", "uncovered"
KINDS = {
    BIAS: "biases of layers, which keep their share of the output; of activations, f(0)",
    CONSTANT: "tensors and numbers without relevance that are added or put in: positions, class tokens, padding",
    SOFTMAX: "what the expansion of softmax leaves over, in attention as well",
    STABILIZER: "epsilon in denominators",
    NORM: "statistics of normalizations: the mean that a batch norm takes off",
    HIGHER_ORDERS: "what a Taylor decomposition of first order leaves over",
    RULE: "what a rule changes by itself: a block that is not linear under Epsilon, a rule that does not conserve",
    UNCOVERED: "operations that no rule covers: what the plain gradient loses or makes there",
}
"""Every kind of absorption, with what it holds."""
_AFFINE = (Family.LINEAR, Family.PRODUCT, Family.CONTRACTION, Family.NORMALIZATION)


def kind_of_constant(call: OpCall) -> str:
    """Return the kind of the part of an operation's output that does not depend on the carriers."""
    if call.module is not None:
        if not isinstance(call.module, LAYER_TYPES):
            return RULE
        return STABILIZER if call.module.bias is None else BIAS
    op = call.op
    if op is None:
        return RULE
    if op.family in (Family.SOFTMAX, Family.ATTENTION):
        return SOFTMAX
    if op.traits.norm is not None:
        return NORM
    if op.traits.bias is not None:
        return STABILIZER if op.traits.bias.of(call.args, call.kwargs) is None else BIAS
    return CONSTANT if op.family in (Family.LINEAR, Family.MOVEMENT) else RULE


def bias_of_norm(call: OpCall) -> Tensor | None:
    """Return the constant bias of a normalization as it broadcasts to its output; None if it has none."""
    if call.op is None or call.op.traits.norm is None or call.op.traits.bias is None:
        return None
    given = call.op.traits.bias.of(call.args, call.kwargs)
    if not isinstance(given, Tensor) or given.requires_grad:
        return None
    given = given.detach()
    return given.reshape(-1, *[1] * (call.z.dim() - 2)) if call.op.traits.per_channel else given


def nothing(slot: Tensor) -> Tensor:
    """Return 0 for every element: an amount."""
    return torch.zeros_like(slot)


def none_of_nothing(slot: Tensor, amount: Tensor) -> Tensor:
    """Return an amount, and 0 where no relevance arrives: also at scores of -inf, which a mask has made."""
    return torch.where(slot == 0, 0, amount)


def constant_part(call: OpCall) -> Tensor:
    """Return the part of an affine function that does not depend on the carriers: its value where all are 0."""
    if call.op is not None and (call.op.family not in _AFFINE or call.op.traits.dropout):
        return call.z.new_zeros(())
    with torch.no_grad():
        return call.run_again([torch.zeros_like(x) for x in call.values])


def expanded(call: OpCall, shares: Sequence[float]) -> Tensor:
    """Return ``sum over the carriers of share * J x``, in the shape of the output.

    Computed by a central difference where torch has no second derivative, or one that is not finite.
    """
    points = [x.detach().clone().requires_grad_() for x in call.values]
    values = [share * x.masked_fill(x.isinf(), 0) for x, share in zip(call.values, shares, strict=True)]
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the kernel that can be differentiated twice
            found = linear_part(call.run_again(points), points, values)
    except NotImplementedError:
        found = None
    return _difference(call, values) if found is None or not found.isfinite().all() else found


def _difference(call: OpCall, values: Sequence[Tensor]) -> Tensor:
    """Return ``(f(x + h v) - f(x - h v)) / 2 h``, which is ``J v`` up to the square of h, for h = eps ** (1 / 3)."""
    step = torch.finfo(call.z.dtype).eps ** (1 / 3)
    with torch.no_grad():
        ahead, behind = (
            call.run_again([x + h * v for x, v in zip(call.values, values, strict=True)]) for h in (step, -step)
        )
        return (ahead - behind) / (2 * step)


def left_over(call: OpCall, shares: Sequence[float], epsilon: Stabilizing, slot: Tensor) -> Tensor:
    """Return ``s * (z - sum of share * J x)`` with ``s = R / (z + e sign z)``: what an expansion does not hand on."""
    s = slot
    if call.relevance or epsilon:
        s = call.relevance_in(slot) / stabilize(call.z, epsilon)
    return s * (call.z - expanded(call, shares))


def biases_of_block(call: OpCall) -> Tensor:
    """Return ``sum of J_b b`` over the biases in a module; with ``J x`` it is z if the module is piecewise linear."""
    assert call.module is not None
    named = [(name, p) for name, p in call.module.named_parameters() if name.rpartition(".")[2] == "bias"]
    biases = {name: p.detach().clone().requires_grad_() for name, p in named}
    if not biases:
        return torch.zeros_like(call.z)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        output = call.run_again(call.values, biases)
        return linear_part(output, list(biases.values()), [bias.detach() for bias in biases.values()])


def is_block(module: nn.Module | None) -> bool:
    """Return whether a module has other modules inside."""
    return module is not None and next(module.children(), None) is not None


def linear_part(output: Tensor, points: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Return ``J(x~) values`` for ``output = f(x~)``: the derivative of ``values . J^T v`` with respect to v."""
    if not output.requires_grad or not any(value.any() for value in values):
        return torch.zeros_like(output)
    with torch.enable_grad():
        v = torch.zeros_like(output, requires_grad=True)
        pulled = torch.autograd.grad(output, points, v, create_graph=True, retain_graph=True, allow_unused=True)
        inner = sum((g * value.detach()).sum() for g, value in zip(pulled, values, strict=True) if g is not None)
        if not isinstance(inner, Tensor) or not inner.requires_grad:
            return torch.zeros_like(output)
        return torch.autograd.grad(inner, v, retain_graph=True)[0].detach()
