"""Rules for the first layer, which share relevance by the range of the inputs or by the weights, also with zeros."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..autograd.numerics import (
    EPSILON,
    Stabilizing,
    broadcasts_to,
    check_epsilon,
    check_flag,
    check_number,
    over_stabilized,
)
from ..errors import RuleError
from .base import RELEVANCE, Call
from .linear_layers.branches import without_bias
from .linear_layers.layer import Layer
from .linear_layers.weight_parts import negative, positive, square
from .spelling import QUIET
from .split import Split, Term


@dataclass(frozen=True, eq=False)
class ZBox(Split):
    """The box rule, for inputs that are known to lie in ``[low, high]`` (pixels).

    ``R_i = sum_j (x_i w_ij - low_i w_ij^+ - high_i w_ij^-) / sum_i' (same) R_j``; the bias does not count. Needs the
    relevance formulation, since an input of 0 may have relevance.

    Args:
        low: the smallest value of each input: a number, or a tensor that broadcasts to the input.
        high: the largest value of each input, >= low.
        epsilon: stabilizer of the denominator, >= 0, signed (see :class:`Epsilon`); or a function such as
            :class:`Stabilizer`.

    Raises:
        ValueError: low is above high somewhere, or one is not finite, or their shapes do not fit.
        RuleError: the layer is not linear in one input with constant weights, or a bound does not broadcast to it.

    Source: Montavon et al. 2017, eq. 14.
    """

    formulations: ClassVar[tuple[str, ...]] = (RELEVANCE,)

    low: float | Tensor
    high: float | Tensor
    epsilon: Stabilizing = field(default=EPSILON, metadata=QUIET)

    def __post_init__(self) -> None:
        for name, bound in (("low", self.low), ("high", self.high)):
            if not isinstance(bound, Tensor):
                check_number(name, bound)
            elif not bound.isfinite().all():
                raise ValueError(f"{name} must be finite, got {bound!r}")
        low, high = torch.as_tensor(self.low), torch.as_tensor(self.high)
        try:
            above = torch.any(low > high)
        except RuntimeError:
            shapes = f"{tuple(low.shape)} and {tuple(high.shape)}"
            raise ValueError(f"low and high must broadcast with each other, got shapes {shapes}") from None
        if above:
            raise ValueError(f"low must not be above high, got low={self.low!r}, high={self.high!r}")
        check_epsilon(self.epsilon)

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        x = call.carriers[place]
        for name, bound in (("low", self.low), ("high", self.high)):
            if isinstance(bound, Tensor) and not broadcasts_to(bound.shape, x.shape):
                raise RuleError(
                    f"{name} of {self} must broadcast to the input of {call.where}, which has shape {tuple(x.shape)}; "
                    f"for one value for each channel give it the shape [channels, 1, 1]"
                )
        return super().enter(call, place)

    def by_pieces(self, x: Tensor) -> bool:
        """See :meth:`Split.by_pieces`: not where each sample has bounds of its own."""
        bounds = [bound for bound in (self.low, self.high) if isinstance(bound, Tensor)]
        each = any(bound.dim() == x.dim() and len(bound) > 1 for bound in bounds)
        return super().by_pieces(x) and not each

    def pull(self, layer: Layer, r: Tensor, x: Tensor, z: Tensor, relevance: bool) -> Tensor:
        """See :meth:`Split.pull`: ``(x - low) * W+^T s + (x - high) * W-^T s``, which is the same and cannot cancel."""
        low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (self.low, self.high))
        least = layer.of_constant(low, positive, x) + layer.of_constant(high, negative, x)
        s = over_stabilized(r, without_bias(layer, x, z) - least, self.epsilon)
        from_low = layer.transpose(s, positive, x).mul_(x - low)
        return from_low.addcmul_(layer.transpose(s, negative, x), x - high)

    @property
    def counts_bias(self) -> bool:
        """See :meth:`Split.counts_bias`: never."""
        return False

    def terms(self, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
        """See :meth:`Split.terms`: ``D = z - low W^+ - high W^-``."""
        low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (self.low, self.high))
        least = layer.of_constant(low, positive, x) + layer.of_constant(high, negative, x)
        return [(1.0, z - least, torch.zeros_like(bias))]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ZBox):
            return NotImplemented
        pairs = [(torch.as_tensor(a), torch.as_tensor(b)) for a, b in ((self.low, other.low), (self.high, other.high))]
        return all(torch.equal(a, b) for a, b in pairs) and self.epsilon == other.epsilon

    def __hash__(self) -> int:
        return hash((ZBox, self.epsilon))


@dataclass(frozen=True)
class _ByWeight(Split):
    """Base of the rules that do not depend on the values of the input."""

    formulations: ClassVar[tuple[str, ...]] = (RELEVANCE,)

    def by_pieces(self, x: Tensor) -> bool:
        """See :meth:`Split.by_pieces`: nothing of the size of the batch is multiplied forward."""
        return False

    def saved(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Split.saved`: tensors of the same shapes, without memory."""
        return x.new_zeros(()).expand(x.shape), z.new_zeros(()).expand(z.shape)


@dataclass(frozen=True)
class WSquare(_ByWeight):
    """The w^2 rule: ``R_i = sum_j w_ij^2 / (sum_i' w_i'j^2 + b_j^2) R_j``, whatever the input is.

    Needs the relevance formulation, since an input of 0 has relevance.

    Args:
        epsilon: stabilizer of the denominator, >= 0 (see :class:`Epsilon`); or a function such as :class:`Stabilizer`.
        zero_bias: whether the bias is left out of the denominators, so that it gets no relevance.

    Raises:
        ValueError: epsilon is negative or not finite.
        RuleError: the layer is not linear in one input with constant weights.

    Source: Montavon et al. 2017, eq. 12.
    """

    epsilon: Stabilizing = field(default=EPSILON, metadata=QUIET)
    zero_bias: bool = field(default=False, metadata=QUIET)

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_flag("zero_bias", self.zero_bias)

    def pull(self, layer: Layer, r: Tensor, x: Tensor, z: Tensor, relevance: bool) -> Tensor:
        """See :meth:`Split.pull`."""
        total = layer.of_constant(1.0, square, x)
        if layer.offset is not None and not self.zero_bias:
            total = total + layer.offset.square()
        return layer.transpose(over_stabilized(r, total, self.epsilon), square, x)

    def terms(self, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
        """See :meth:`Split.terms`: ``D = sum of w^2 + b^2``."""
        added = torch.zeros_like(bias) if self.zero_bias else bias.square()
        return [(1.0, layer.of_constant(1.0, square, x) + added, added)]


@dataclass(frozen=True)
class Flat(_ByWeight):
    """The flat rule: the relevance of a neuron is shared evenly by its inputs, ``R_i = sum_j [i feeds j] / n_j R_j``.

    Inputs that are padding do not count; the bias does not either. Needs the relevance formulation, since an input of
    0 has relevance.

    Args:
        epsilon: stabilizer of the denominator, >= 0 (see :class:`Epsilon`); or a function such as :class:`Stabilizer`.

    Raises:
        ValueError: epsilon is negative or not finite.
        RuleError: the layer is not linear in one input with constant weights.

    Source: Lapuschkin et al. 2019, supplementary note 2; Bach et al. 2016.
    """

    epsilon: Stabilizing = field(default=EPSILON, metadata=QUIET)

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)

    def pull(self, layer: Layer, r: Tensor, x: Tensor, z: Tensor, relevance: bool) -> Tensor:
        """See :meth:`Split.pull`."""
        total = layer.of_constant(1.0, layer.unit, x)
        return layer.transpose(over_stabilized(r, total, self.epsilon), layer.unit, x)

    @property
    def counts_bias(self) -> bool:
        """See :meth:`Split.counts_bias`: never."""
        return False

    def terms(self, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
        """See :meth:`Split.terms`: D is the number of inputs."""
        return [(1.0, layer.of_constant(1.0, layer.unit, x), torch.zeros_like(bias))]
