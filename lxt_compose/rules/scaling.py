"""Scaling rules: the operation's own gradient does the work, only its borders are scaled."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import RuleError
from ..gradients import Damp, OverOutput, Share, Slots, TimesInput, bypass
from ..numerics import Stabilising, at_least_resolution, check_epsilon, narrowed, over_stabilised, tensors_in
from .base import QUIET, Call, Rule
from .known_layers import offset_of, plain_layer
from .layers import Layer, in_pieces, without_autocast
from .parts import whole


@dataclass(frozen=True)
class Scaling(Rule):
    """Base of the rules of the form ``R_x = share * x * J^T (R / z)`` with a share for each carrier x."""

    knows_complex: ClassVar[bool] = True

    epsilon: Stabilising = 1e-6

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)

    def shares(self, call: Call) -> list[float]:
        """The share of each carrier; 0 stops it, which makes it a constant."""
        return [1.0] * len(call.carriers)

    def split(self, call: Call) -> tuple[float, list[float]]:
        """The shares as one factor at the output and the rest at each carrier (1 costs nothing)."""
        shares = self.shares(call)
        common = max(shares, default=1.0) or 1.0
        return common, [share / common for share in shares]

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        x, share = call.carriers[place], self.split(call)[1][place]
        if share == 0:
            return x.detach()
        if call.relevance:
            return TimesInput.apply(x, share)
        return x if share == 1 else Share.apply(x, share)

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        common = self.split(call)[0]
        if call.relevance:
            return [OverOutput.apply(z, self.epsilon, common) if z.requires_grad else z for z in outputs]
        if self.epsilon:
            return [Damp.apply(z, self.epsilon, common) if z.requires_grad else z for z in outputs]
        if common == 1:
            return outputs
        return [Share.apply(z, common) if z.requires_grad else z for z in outputs]

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`: in the gradient formulation a plain share of 1 is the gradient itself."""
        return not call.relevance and not self.epsilon and all(share == 1 for share in self.shares(call))


@dataclass(frozen=True)
class Epsilon(Scaling):
    """The epsilon rule: each input gets its contribution's share of the output.

    ``R_i = x_i * sum_j w_ij R_j / (z_j + epsilon * sign(z_j))`` with ``z_j = sum_i w_ij x_i + b_j``; for any
    differentiable operation or block z(x): ``R = x * J^T (R_z / (z + epsilon * sign(z)))``. Biases keep their share.
    In the gradient formulation ``g = J^T (g_z * z / (z + epsilon * sign(z)))``; epsilon = 0 is the gradient itself.

    Args:
        epsilon: stabiliser, >= 0; sign(0) = +1; where it divides, at least the decimal resolution of the dtype. Or a
            function of z that gives the denominator, such as :class:`Stabiliser`.
        zero_bias: whether the bias of a layer is left out of the denominator, so that it gets no relevance.

    Raises:
        ValueError: epsilon is negative or not finite.
        RuleError: zero_bias for an operation that is no layer ``W x + b``.

    Source: Bach et al. 2015, eq. 58; as the linear rule of AttnLRP: Achtibat et al. 2024, eq. 8.
    """

    zero_bias: bool = field(default=False, metadata=QUIET)

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        call.kept = plain_layer(call, rounded=self.zero_bias) if call.relevance else None
        return super().enter(call, place) if call.kept is None else call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if call.kept is not None:
            (z,) = outputs
            layer = replace(call.kept, made_in=z.dtype)
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

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`."""
        return not self.zero_bias and super().idle(call)


def through_layer(layer: Layer, epsilon: Stabilising, zero_bias: bool, slot: Tensor, x: Tensor, z: Tensor) -> Slots:
    """A linear layer or convolution: its own gradient, asked for by hand, which saves memory and passes over it."""

    def pull(slot: Tensor, x: Tensor, z: Tensor) -> Tensor:
        given, x = x.dtype, x.to(layer.dtype)
        least = epsilon if callable(epsilon) else at_least_resolution(epsilon, z.dtype)
        s = over_stabilised(slot, layer.without_bias(x, z) if zero_bias else z, least)
        found = layer.transpose(s.to(layer.dtype), whole, x)
        return narrowed(found * x if torch.is_grad_enabled() else found.mul_(x), given)

    with without_autocast(x):
        whole_batch = torch.is_grad_enabled() or callable(epsilon)  # such a function may look at all samples
        return (pull(slot, x, z) if whole_batch else in_pieces(layer, pull, slot, x, z),)


def _without_bias(epsilon: Stabilising, relevance: bool, slot: Tensor, z: Tensor, bias: Tensor) -> Slots:
    return (over_stabilised(slot if relevance else slot * z, z - bias, epsilon),)


@dataclass(frozen=True)
class UniformEpsilon(Scaling):
    """Epsilon, shared evenly by the n factors of a product that carry relevance.

    ``O = A V``: ``R_A = 1/2 * A * (R_O / (O + epsilon * sign(O)) V^T)`` and likewise for V; with a constant factor
    n = 1 and it is :class:`Epsilon`. What is added to the product (a bias) keeps its share in full.

    Args:
        epsilon: stabiliser, >= 0 (see :class:`Epsilon`).

    Raises:
        ValueError: epsilon is negative or not finite.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.3.
    """

    def shares(self, call: Call) -> list[float]:
        """1/n for each of the n factors, 1 for what is added."""
        addend = addends_of(call)
        factors = len(addend) - sum(addend)
        return [1.0 if added else 1.0 / factors for added in addend]


def addends_of(call: Call) -> list[bool]:
    """For each carrier, whether the operation adds it to a product of the others (as a bias) or multiplies it."""
    addends = call.op.addends if call.op is not None else frozenset[int | str]()
    places: list[tuple[int | str, object]] = [*enumerate(call.args), *call.kwargs.items()]
    return [place in addends for place, value in places for tensor in tensors_in(value) if tensor.requires_grad]
