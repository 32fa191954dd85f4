"""The alpha-beta rule and its special case ZPlus, which share out positive and negative contributions separately."""

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
    may_write_over,
    over_positive,
)
from ..torch_internals import is_batched
from .linear_layers.branches import (
    Condition,
    both,
    choose,
    choose_among,
    is_nonnegative,
    is_nowhere,
    opposite,
    without_bias,
)
from .linear_layers.layer import Layer
from .linear_layers.weight_parts import absolute, negative, positive, whole
from .spelling import QUIET
from .split import Split, Term, unless

_PARTS = (whole, absolute, positive, negative)


def _tolerance(layer: Layer) -> float:
    """Return how small one sum may be, relative to both, and still be computed as a difference.

    The error of the difference is then 1e-5; or some times the rounding of outputs that the model computed in half
    precision, or with the ten bits that convolutions on a GPU may have in float32 (TF32).
    """
    is_coarse = layer.is_rounded or (layer.weight.is_cuda and layer.dtype == torch.float32)
    return 0.25 if is_coarse else min(1e5 * torch.finfo(layer.dtype).eps, 0.25)


@dataclass(frozen=True)
class AlphaBeta(Split):
    """The alpha-beta rule: positive contributions weigh alpha, negative ones -beta.

    ``R_i = sum_j (alpha * c_ij^+ / z_j^+ - beta * c_ij^- / z_j^-) R_j``, with the sums ``z^+`` and ``z^-`` over the
    positive and the negative contributions, the positive part of the bias in z^+ and its negative part in z^-.

    Both sums and both shares cost one product more than the layer's own, forward and backward. For inputs >= 0,
    ``z^-`` is the product with the negative weights, and ``z^+ = z - z^-``. For inputs of both signs, with
    ``A = |W| |x| + |b|``, ``z^+ = (z + A) / 2``, ``z^- = (z - A) / 2`` and, with ``p = alpha R / z^+`` and
    ``n = -beta R / z^-``, ``R_i = (x_i [W^T (p + n)]_i + |x_i| [|W|^T (p - n)]_i) / 2``. Where there is relevance at a
    sum that would come out of these differences with a relative error above 1e-5 (in half precision, above some times
    its resolution), the layer is computed with the parts themselves instead.

    Args:
        alpha: weight of the positive part, >= 1.
        beta: weight of the negative part, >= 0, with alpha - beta = 1.
        epsilon: stabilizer of the sums, >= 0, signed (see :class:`Epsilon`); or a function such as :class:`Stabilizer`.
        zero_bias: whether the bias is left out of the sums, so that it gets no relevance.

    Raises:
        ValueError: out of range, or alpha - beta is not 1.
        RuleError: the layer is not linear in one input with constant weights.

    Source: Bach et al. 2015, eq. 60.
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: Stabilizing = field(default=EPSILON, metadata=QUIET)
    zero_bias: bool = field(default=False, metadata=QUIET)

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, low=0.0)
        check_number("beta", self.beta, low=0.0)
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise ValueError(f"alpha - beta must be 1 to conserve relevance, got alpha={self.alpha}, beta={self.beta}")
        check_epsilon(self.epsilon)
        check_flag("zero_bias", self.zero_bias)

    def terms(self, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
        """See :meth:`Split.terms`: ``D = z^+``, and ``D = z^-`` with the share -beta."""
        bias = torch.zeros_like(bias) if self.zero_bias else bias
        up, down, added = x.clamp(min=0), x.clamp(max=0), bias.clamp(min=0)
        found = [(self.alpha, layer.product(up, positive) + layer.product(down, negative) + added, added)]
        if self.beta:
            added = bias.clamp(max=0)
            found += [(-self.beta, layer.product(up, negative) + layer.product(down, positive) + added, added)]
        return found

    def pull(self, layer: Layer, r: Tensor, x: Tensor, z: Tensor, relevance: bool) -> Tensor:
        """See :meth:`Split.pull`."""
        same = is_nonnegative(x)
        if not isinstance(same, bool) and is_batched(r):  # a graph for several slots at a time can hold no choice
            return self._of_parts(relevance, layer, r, x)
        known = same is True and not self.beta  # z^+ alone is needed
        z = without_bias(layer, x, z) if self.zero_bias and not known else z
        side = choose(same, self._one_side, self._size, layer, (x,), _PARTS)
        exact: Condition = True
        if not known:
            exact = is_nowhere(choose(same, self._lost_of_nonnegative, self._lost_of_signed, layer, (z, side), ()), r)
        given = partial(self._of_nonnegative, relevance), partial(self._of_differences, relevance)
        ways = [
            (both(same, lambda: exact), partial(given[0], True)),
            (both(same, lambda: opposite(exact)), partial(given[0], False)),
            (both(opposite(same), lambda: exact), given[1]),
            (both(opposite(same), lambda: opposite(exact)), partial(self._of_parts, relevance)),
        ]
        return choose_among(ways, layer, (r, x, z, side), _PARTS)

    def _one_side(self, layer: Layer, x: Tensor) -> Tensor:
        """Return ``z^-`` of inputs >= 0; of the rule without beta ``z^+``."""
        part = negative if self.beta else positive
        return layer.product(x, part, unless(self.zero_bias, part))

    def _size(self, layer: Layer, x: Tensor) -> Tensor:
        return layer.product(x.abs(), absolute, unless(self.zero_bias, absolute))

    def _lost_of_nonnegative(self, layer: Layer, z: Tensor, side: Tensor) -> Tensor:
        """Return a tensor, not 0 where ``P = z - z^-`` may cancel: ``P < tolerance * |N|``, which needs z < 0."""
        if not self.beta:
            return torch.zeros_like(side)
        return (z - side).add_(side, alpha=_tolerance(layer)).clamp_(max=0)

    def _lost_of_signed(self, layer: Layer, z: Tensor, side: Tensor) -> Tensor:
        """Return the same for the smaller of both sums, ``(A - |z|) / 2``.

        Without beta only P counts, ``(A + z) / 2``.
        """
        other = z.abs() if self.beta else -z
        return other.sub_(side, alpha=1 - 2 * _tolerance(layer)).clamp_(min=0)

    def _of_nonnegative(
        self, relevance: bool, exact: bool, layer: Layer, r: Tensor, x: Tensor, z: Tensor, side: Tensor
    ) -> Tensor:
        if not self.beta:
            above = side.clamp_(min=0) if may_write_over(side) else side.clamp(min=0)
        elif exact:
            above = (z - side).clamp_(min=0)
        else:
            above = layer.product(x, positive, unless(self.zero_bias, positive)).clamp_(min=0)
        slot = layer.transpose(self._share(r, above), positive, x)
        if self.beta:
            slot.add_(layer.transpose(self._other_share(r, -side), negative, x))
        # An input of 0 has no relevance; without this, a sum of no contributions would make its slot huge.
        return slot.mul_(x if relevance else x.sign())

    def _of_differences(self, relevance: bool, layer: Layer, r: Tensor, x: Tensor, z: Tensor, size: Tensor) -> Tensor:
        p = self._share(r, (z + size).mul_(0.5).clamp_(min=0))
        if not self.beta:
            return _joined(x, layer.transpose(p, positive, x), layer.transpose(p, negative, x), relevance)
        below = torch.sub(z, size, out=size) if may_hold(size, z) else z - size
        n = self._other_share(r, below.mul_(-0.5).clamp_(min=0))
        plain, extra = layer.transpose(p + n, whole, x), layer.transpose(p.sub_(n), absolute, x)
        if relevance:
            return plain.mul_(x).addcmul_(extra, x.abs()).mul_(0.5)
        sign = x.sign()
        return plain.addcmul_(extra, sign).mul_(sign.abs_()).mul_(0.5)

    def _of_parts(self, relevance: bool, layer: Layer, r: Tensor, x: Tensor, *_: Tensor) -> Tensor:
        """Return the slot with each sum computed by itself rather than as a difference: two products for each."""
        up, down = x.clamp(min=0), x.clamp(max=0)
        above = layer.product(up, positive, unless(self.zero_bias, positive)).add_(layer.product(down, negative))
        p = self._share(r, above)
        over_up, over_down = layer.transpose(p, positive, x), layer.transpose(p, negative, x)
        if self.beta:
            below = layer.product(up, negative, unless(self.zero_bias, negative)).add_(layer.product(down, positive))
            n = self._other_share(r, below.neg_())
            over_up.add_(layer.transpose(n, negative, x))
            over_down.add_(layer.transpose(n, positive, x))
        return _joined(x, over_up, over_down, relevance)

    def _share(self, r: Tensor, above: Tensor) -> Tensor:
        p = over_positive(r, above, self.epsilon)
        return p if self.alpha == 1 else p.mul_(self.alpha)

    def _other_share(self, r: Tensor, below: Tensor) -> Tensor:
        """Return ``-beta R / N`` from ``|N|``, in place."""
        n = over_positive(r, below, self.epsilon)
        return n if self.beta == 1 else n.mul_(self.beta)


def _joined(x: Tensor, over_up: Tensor, over_down: Tensor, relevance: bool) -> Tensor:
    """Return one of two slots by the sign of x, times x in the relevance formulation; 0 where x is 0."""
    up, down = (x.clamp(min=0), x.clamp(max=0)) if relevance else (x.sign().clamp_(min=0), (-x).sign().clamp_(min=0))
    return over_up.mul_(up).addcmul_(over_down, down)


@dataclass(frozen=True)
class ZPlus(Split):
    """The z+ rule: only positive contributions get relevance, ``R_i = sum_j c_ij^+ / z_j^+ R_j``.

    It is :class:`AlphaBeta` with alpha = 1 and beta = 0, and for inputs >= 0 excitation backpropagation.

    Args:
        epsilon: stabilizer of the sums, >= 0, signed (see :class:`Epsilon`); or a function such as :class:`Stabilizer`.
        zero_bias: whether the positive part of the bias is left out of the sums, so that it gets no relevance.

    Raises:
        ValueError: epsilon is negative or not finite.
        RuleError: the layer is not linear in one input with constant weights.

    Source: Montavon et al. 2017, eq. 11; excitation backpropagation: Zhang et al. 2016, eq. 6.
    """

    epsilon: Stabilizing = field(default=EPSILON, metadata=QUIET)
    zero_bias: bool = field(default=False, metadata=QUIET)

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_flag("zero_bias", self.zero_bias)

    def terms(self, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
        """See :meth:`Split.terms`: ``D = z^+``."""
        return AlphaBeta(1.0, 0.0, self.epsilon, self.zero_bias).terms(layer, x, z, bias)

    def pull(self, layer: Layer, r: Tensor, x: Tensor, z: Tensor, relevance: bool) -> Tensor:
        """See :meth:`Split.pull`."""
        return AlphaBeta(1.0, 0.0, self.epsilon, self.zero_bias).pull(layer, r, x, z, relevance)
