"""The epsilon rule."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.functions import Slots, bypass
from ..autograd.numerics import Stabilizing, check_flag, epsilon_in, narrowed, over_stabilized, stabilize
from ..errors import RuleError
from .absorption import BIAS, STABILIZER, constant_part, kind_of_constant
from .again import Again
from .base import Amount, Call
from .linear_layers.branches import without_bias
from .linear_layers.layer import Layer, in_pieces, without_autocast
from .linear_layers.offset import offset_of
from .linear_layers.recognize import plain_layer
from .linear_layers.weight_parts import whole
from .scaling import Scaling, again_by_shares
from .spelling import QUIET


@dataclass(frozen=True)
class Epsilon(Scaling):
    """The epsilon rule: each input gets its contribution's share of the output.

    ``R_i = x_i * sum_j w_ij R_j / (z_j + epsilon * sign(z_j))`` with ``z_j = sum_i w_ij x_i + b_j``; for any
    differentiable operation or block z(x): ``R = x * J^T (R_z / (z + epsilon * sign(z)))``. Biases keep their share.
    In the gradient formulation ``g = J^T (g_z * z / (z + epsilon * sign(z)))``; epsilon = 0 is the gradient itself.

    Args:
        epsilon: stabilizer, >= 0, with sign(0) = +1. It acts as given down to the smallest normal number of the dtype
            of z (1e-38 in float32 and bfloat16, 6e-5 in float16). The default acts as 1e-6 in float32 and float64, as
            the decimal resolution in half precision (1e-3 in float16, 1e-2 in bfloat16), whose sums cancel to noise of
            that size; so does 0 in each dtype, where something must be divided by z (1e-15 and 1e-6 in float64 and
            float32). Where R / z would be above 1e19 (2^14 in float16) it is cut to that, so that all relevance is
            finite. Or a function of z that gives the denominator, such as :class:`Stabilizer`.
        zero_bias: whether the bias of a layer is left out of the denominator, so that it gets no relevance.

    Raises:
        ValueError: epsilon is negative or not finite.
        RuleError: zero_bias for an operation that is no layer ``W x + b``.

    Source: Bach et al. 2015, eq. 58; as the linear rule of AttnLRP: Achtibat et al. 2024, eq. 8.
    """

    zero_bias: bool = field(default=False, metadata=QUIET)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("zero_bias", self.zero_bias)

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        call.kept = plain_layer(call, rounded=self.zero_bias) if call.relevance else None
        return super().enter(call, place) if call.kept is None else call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if call.kept is not None:
            (z,) = outputs
            layer = replace(call.kept, made_in=z.dtype) if self.zero_bias else call.kept
            step = partial(through_layer, layer, self.epsilon, self.zero_bias)
            return [bypass(step, z, (call.values[0], z), call.carriers)]
        if not self.zero_bias:
            return super().leave(call, outputs)
        try:
            bias = offset_of(call, outputs)
        except LookupError:
            raise RuleError(f"{self}: zero_bias=True knows layers W x + b, and {call.where} is no such layer") from None
        if bias is None:
            return super().leave(call, outputs)
        (z,) = outputs
        return [bypass(partial(_without_bias, self.epsilon, call.relevance), z, (z, bias), [z])]

    def again(self, call: Call, output: Tensor) -> Again | None:
        """See :meth:`Rule.again`: of layers whose weight is a parameter, and of what is no layer."""
        layer: Layer | None = call.kept
        if self.zero_bias:
            return None
        if layer is None:
            return again_by_shares(self, call, output)
        known = isinstance(layer.weight, nn.Parameter)
        fits = partial(_has_weight, layer.weight, call.values[0].dim())
        return Again(partial(_of_layer, layer, self.epsilon), holds=fits) if known else None

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`; with `zero_bias` the stabilizer alone keeps something."""
        if not self.zero_bias:
            return super().absorbed(call)
        return {} if call.rerun is None else {STABILIZER: partial(self._in_stabilizer, call)}

    def _in_stabilizer(self, call: Call, slot: Tensor) -> Tensor:
        r, z = call.relevance_in(slot), call.z - constant_part(call)
        return r - r / stabilize(z, self.epsilon) * z

    def rest(self, call: Call) -> str:
        """See :meth:`Rule.rest`: in what is not linear, the rule itself."""
        kind = kind_of_constant(call)
        return STABILIZER if self.zero_bias and kind == BIAS else kind

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`."""
        return not self.zero_bias and super().idle(call)


def through_layer(layer: Layer, epsilon: Stabilizing, zero_bias: bool, slot: Tensor, x: Tensor, z: Tensor) -> Slots:
    """Return the slot of the input of a linear layer or convolution.

    Computed by the layer's transpose and not through an autograd graph, which saves memory and passes over it.
    """

    def pull(slot: Tensor, x: Tensor, z: Tensor) -> Tensor:
        given, x = x.dtype, x.to(layer.dtype)
        least = epsilon if callable(epsilon) else epsilon_in(epsilon, z.dtype)
        s = over_stabilized(slot, without_bias(layer, x, z) if zero_bias else z, least)
        found = layer.transpose(s.to(layer.dtype), whole, x)
        return narrowed(found * x if torch.is_grad_enabled() else found.mul_(x), given)

    with without_autocast(x):
        whole_batch = torch.is_grad_enabled() or callable(epsilon)  # such a function may look at all samples
        return (pull(slot, x, z) if whole_batch else in_pieces(layer, pull, slot, x, z),)


def _has_weight(weight: Tensor, dims: int, carriers: Sequence[Tensor], args: Sequence[Any]) -> bool:
    """Return whether a layer has this weight, and an input of as many dimensions."""
    return carriers[0].dim() == dims and any(value is weight for value in args)


def _of_layer(layer: Layer, epsilon: Stabilizing, carriers: Sequence[Tensor], z: Tensor, *_: Any) -> Tensor:
    if layer.version != layer.weight._version:
        layer = replace(layer, version=layer.weight._version)
    return bypass(partial(through_layer, layer, epsilon, False), z, (carriers[0], z), carriers)


def _without_bias(epsilon: Stabilizing, relevance: bool, slot: Tensor, z: Tensor, bias: Tensor) -> Slots:
    return (over_stabilized(slot if relevance else slot * z, z - bias, epsilon),)
