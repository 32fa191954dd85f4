"""The uniform rule for products of the elements of one tensor."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..autograd.functions import Share, graft
from ..autograd.trees import map_tensors
from ..errors import RuleError
from .absorption import CONSTANT
from .base import Amount, Call, Rule, only_output


@dataclass(frozen=True)
class UniformElements(Rule):
    """Each of the n elements that are multiplied with each other gets the same part of the relevance.

    ``z_k = product of x_i for i in S_k``, ``R_i = sum over the k with i in S_k of R_k / n_k``, where n_k is the number
    of elements in S_k that carry relevance. In the gradient formulation ``g_i = sum_k g_k / n_k * dz_k / dx_i``: the
    product of the other elements, by the operation's own gradient, which divides by none of them. Where x is not 0 the
    two agree by ``R = x g``; elements that are 0 have no relevance in that formulation. A constant among the factors
    gets nothing; a product of constants alone (an empty segment) keeps its relevance.

    Knows ``prod``, ``cumprod``, and ``scatter_reduce``, ``index_reduce`` and ``segment_reduce`` with
    ``reduce="prod"``. It is their default wherever products have one.

    Raises:
        RuleError: the operation is another one.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.2, for n factors.
    """

    knows_complex: ClassVar[bool] = False

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        if place == 0:
            call.kept = _numbers(self, call)  # now: the operation may overwrite a carrier
        return call.carriers[place].detach() if call.relevance else call.carriers[place]

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        z, share = only_output(self, call, outputs), _shares(call.kept)
        if not call.relevance:
            return [Share.apply(z, share)]
        return [graft(z, Share.apply(_sum(self, call, call.carriers), share))]

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: all relevance of products of constants alone."""
        return {CONSTANT: partial(_of_constants, call, _numbers(self, call) == 0)}


def _sum(rule: Rule, call: Call, carriers: list[Tensor]) -> Tensor:
    """Return the same reduction as a sum, of these in place of the carriers and of zeros in place of the constants."""
    form = None if call.op is None else call.op.traits.element_sum
    if form is None:
        raise RuleError(
            f"{rule} knows products of the elements of one tensor, such as torch.prod and torch.cumprod, not "
            f"{call.where}; use Uniform() for products of several tensors"
        )
    given = {id(x): other for x, other in zip(call.carriers, carriers, strict=True)}

    def exchanged(x: Tensor) -> Tensor:
        if id(x) in given:
            return given[id(x)]
        return torch.zeros_like(x) if x.is_floating_point() else x

    args, kwargs = map_tensors(exchanged, (call.args, call.kwargs))
    return form(*args, **kwargs)


def _numbers(rule: Rule, call: Call) -> Tensor:
    """Return the number of carrying elements in each element of the output."""
    with torch.no_grad():
        return _sum(rule, call, [torch.ones_like(x) for x in call.carriers])


def _shares(numbers: Tensor) -> Tensor:
    return numbers.clamp(min=1).reciprocal().masked_fill(numbers == 0, 0)


def _of_constants(call: Call, alone: Tensor, slot: Tensor) -> Tensor:
    return call.relevance_in(slot).masked_fill(~alone, 0)
