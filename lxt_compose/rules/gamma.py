"""The gamma rule."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..autograd.numerics import (
    EPSILON,
    Stabilizing,
    check_epsilon,
    check_flag,
    check_number,
    may_hold,
    over_positive,
    over_stabilized,
)
from .linear_layers.branches import (
    Condition,
    both,
    choose,
    is_nonnegative,
    is_nowhere,
    tensors_among,
    without_bias,
)
from .linear_layers.layer import Layer
from .linear_layers.weight_parts import Part, absolute, whole
from .spelling import QUIET
from .split import Emphasis, Split, Term, unless


@dataclass(frozen=True)
class Gamma(Split):
    """The generalized gamma rule: contributions with the sign of the output weigh 1 + gamma.

    ``R_i = sum_j (c_ij + gamma * c_ij^s) / (z_j + gamma * z_j^s) R_j``, where c^s are the contributions that have the
    sign s of z_j (z_j = 0 counts as positive) and z_j^s is their sum, the bias among them if it has that sign too.
    With ``A = |W| |x| + |b|``: ``z^s = (z + s A) / 2``, so that the denominator is
    ``s ((1 + gamma/2) |z| + gamma/2 A)``, without cancellation, and with ``v = R / |denominator|``
    ``R_i = x_i [W^T ((1 + gamma/2) s v)]_i + |x_i| [|W|^T (gamma/2 v)]_i``: one product more than the layer's own,
    forward and backward. For inputs >= 0, where relevance comes from outputs >= 0 alone, ``W + gamma W^+`` does it in
    one product each. gamma = 0 is :class:`Epsilon`.

    Args:
        gamma: how much more the contributions of the output's sign weigh, >= 0.
        epsilon: stabilizer of the denominator, >= 0, signed (see :class:`Epsilon`); or a function such as
            :class:`Stabilizer`.
        zero_bias: whether the bias is left out of the denominators, so that it gets no relevance.

    Raises:
        ValueError: gamma or epsilon is negative or not finite.
        RuleError: the layer is not linear in one input with constant weights.

    Source: Montavon et al. 2019, section 10.2.3; generalized to negative values by Andeol et al. 2021.
    """

    gamma: float = 0.25
    epsilon: Stabilizing = field(default=EPSILON, metadata=QUIET)
    zero_bias: bool = field(default=False, metadata=QUIET)

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, low=0.0)
        check_epsilon(self.epsilon)
        check_flag("zero_bias", self.zero_bias)

    def terms(self, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
        """See :meth:`Split.terms`: ``D = z + gamma z^s`` with the bias in both."""
        bias = torch.zeros_like(bias) if self.zero_bias else bias
        up, size = z + bias >= 0, layer.product(x.abs(), absolute)
        added = bias + self.gamma * torch.where(up, bias.clamp(min=0), bias.clamp(max=0))
        same = (z + torch.where(up, size, -size)) / 2
        return [(1.0, z + self.gamma * same + added, added)]

    def pull(self, layer: Layer, r: Tensor, x: Tensor, z: Tensor, relevance: bool) -> Tensor:
        """See :meth:`Split.pull`."""
        z = without_bias(layer, x, z) if self.zero_bias else z
        if not self.gamma:
            slot = layer.transpose(over_stabilized(r, z, self.epsilon), whole, x)
            return slot.mul_(x) if relevance else slot
        same = is_nonnegative(x)
        # Where no relevance comes from negative outputs, positive contributions weigh more, whatever the output is.
        # (Denominators of negative outputs are wrong then; a stabilizer that is a function of all would see them.)
        positive = False if callable(self.epsilon) else both(same, lambda: is_nowhere(z.clamp(max=0), r))
        ways = partial(self._of_positive, relevance), partial(self._of_any_sign, relevance, same)
        return choose(positive, *ways, layer, (r, x, z, *tensors_among(same)), self._parts)

    @property
    def _parts(self) -> tuple[Part, ...]:
        return (whole, absolute) if callable(self.epsilon) else (whole, absolute, Emphasis(self.gamma))

    def _of_positive(self, relevance: bool, layer: Layer, r: Tensor, x: Tensor, z: Tensor, *_: Tensor) -> Tensor:
        weigh = Emphasis(self.gamma)
        denominator = layer.product(x, weigh, unless(self.zero_bias, weigh)).clamp_(min=0)
        slot = layer.transpose(over_positive(r, denominator, self.epsilon), weigh, x)
        return slot.mul_(x) if relevance else slot

    def _of_any_sign(
        self, relevance: bool, same: Condition, layer: Layer, r: Tensor, x: Tensor, z: Tensor, *given: Tensor
    ) -> Tensor:
        size = x if same is True else x.abs()
        plain, extra = self._pulled(layer, r, x, size, z)
        if same is True:
            plain.add_(extra)
            return plain.mul_(x) if relevance else plain
        together = plain + extra if given else None
        found = plain.mul_(x).addcmul_(extra, size) if relevance else plain.addcmul_(extra, x.sign())
        if together is None:
            return found
        return torch.where(given[0], together * x if relevance else together, found)

    def _pulled(self, layer: Layer, r: Tensor, x: Tensor, size: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``W^T ((1 + gamma/2) s v)`` and ``|W|^T (gamma/2 v)``; `size` is ``|x|``."""
        half = self.gamma / 2
        denominator = layer.product(size, absolute, unless(self.zero_bias, absolute))
        denominator = denominator.mul_(half).add_(z.abs(), alpha=1 + half)
        v = over_positive(r, denominator, self.epsilon)
        signed = torch.copysign(z.new_full((), 1 + half), z)
        signed = signed.mul_(v) if may_hold(signed, v) else signed * v
        return layer.transpose(signed, whole, x), layer.transpose(v.mul_(half), absolute, x)
