"""Scaling rules: the operation's own gradient, with its slots scaled where they come in and go out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..autograd.functions import Damp, OverOutput, Share, TimesInput
from ..autograd.nodes import Edge, edge_of, scale_edges
from ..autograd.numerics import EPSILON, Stabilizing, check_epsilon, componentwise, over_stabilized
from ..autograd.saved_values import Kept, keep
from ..autograd.trees import PLAIN, tensors_in
from ..ops import mutates
from .absorption import (
    BIAS,
    CONSTANT,
    RULE,
    STABILIZER,
    bias_of_norm,
    biases_of_block,
    constant_part,
    is_block,
    kind_of_constant,
    none_of_nothing,
)
from .again import Again
from .base import Amount, Call, Rule

_HALF = 0.5


@dataclass(frozen=True)
class Scaling(Rule):
    """Base of the rules of the form ``R_x = share * x * J^T (R / z)`` with a share for each carrier x."""

    knows_complex: ClassVar[bool] = True

    epsilon: Stabilizing = EPSILON

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)

    def shares(self, call: Call) -> list[float]:
        """Return the share of each carrier; a carrier with share 0 becomes a constant."""
        return [1.0] * len(call.carriers)

    def shares_of(self, call: Call) -> list[float]:
        """Return the share of each carrier, computed once for each call."""
        if call.shares is None:
            call.shares = self.shares(call)
        return call.shares

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        x, share = call.carriers[place], self.shares_of(call)[place]
        if share == 0:
            return x.detach()
        if call.relevance:
            return TimesInput.apply(x, share)
        if place == 0 or call.edges is None:
            call.edges = _edges_of(call)  # before the operation runs: a change in place gives the carrier another edge
        return x if call.edges or share == 1 else Share.apply(x, share)

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if call.relevance:
            return [OverOutput.apply(z, self.epsilon, 1.0) if z.requires_grad else z for z in outputs]
        edges, shares = call.edges, self.shares_of(call)
        if edges and shares.count(_HALF) == len(shares) and not (call.op and call.op.addends):  # exact: once for both
            outputs = [Share.apply(z, _HALF) if z.requires_grad else z for z in outputs]
        elif edges and shares.count(1) + shares.count(0) < len(shares):
            scale_edges(outputs, dict(zip(edges, shares, strict=True)))
        if self.epsilon:
            return [Damp.apply(z, self.epsilon, 1.0) if z.requires_grad else z for z in outputs]
        return outputs

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: with ``s = R / (z + e sign z)``, s * b for a constant part b of z; and R - s z."""
        found: dict[str, Amount] = {}
        if call.relevance or self.epsilon or call.rerun is not None:
            found[STABILIZER] = partial(_in_stabilizer, call.relevance, self.epsilon, keep(call.z))
        if call.rerun is None:
            bias = bias_of_norm(call)
            if bias is not None:
                found[BIAS] = partial(_in_bias, call.relevance, self.epsilon, keep(call.z), lambda: bias)
            return found
        if is_block(call.module):
            constant, kind = partial(biases_of_block, call), BIAS
        else:
            constant, kind = partial(constant_part, call), self.rest(call)
        kind = kind if kind in (BIAS, CONSTANT) else BIAS
        return found | {kind: partial(_in_bias, call.relevance, self.epsilon, keep(call.z), constant)}

    def rest(self, call: Call) -> str:
        """See :meth:`Rule.rest`: the constant part of the operation."""
        kind = kind_of_constant(call)
        return STABILIZER if kind == RULE and call.op is not None else kind

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`: in the gradient formulation a plain share of 1 is the gradient itself."""
        if call.relevance or self.epsilon:
            return False
        shares = self.shares_of(call)
        return shares.count(1) == len(shares)


def again_by_shares(rule: Scaling, call: Call, output: Tensor) -> Again | None:
    """See :meth:`Rule.again`, for rules whose shares depend on the form of a call and on what is known of carriers."""
    shares = rule.shares_of(call)
    if call.relevance:
        return Again(partial(_over_output, rule.epsilon), partial(_times_input, shares))
    if rule.epsilon or 0 in shares or not call.edges:
        return None
    if shares.count(_HALF) == len(shares) and not (call.op and call.op.addends):
        return Again(lambda carriers, z, args, kwargs: Share.apply(z, _HALF), None)
    return Again(partial(_scaled, shares), None)


def _times_input(shares: Sequence[float], x: Tensor, place: int) -> Tensor:
    found: Tensor = TimesInput.apply(x, shares[place]) if shares[place] else x.detach()
    return found


def _over_output(epsilon: Stabilizing, carriers: Sequence[Tensor], z: Tensor, *_: Any) -> Tensor:
    found: Tensor = OverOutput.apply(z, epsilon, 1.0) if z.requires_grad else z
    return found


def _scaled(shares: Sequence[float], carriers: Sequence[Tensor], z: Tensor, *_: Any) -> Tensor:
    scale_edges([z], dict(zip(map(edge_of, carriers), shares, strict=True)))
    return z


def places_of(call: Call) -> list[int | str]:
    """Return the position, or the keyword, of each carrier among the arguments."""
    places: list[int | str] = []
    given: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    for place, value in given:
        if isinstance(value, Tensor):
            if value.requires_grad:
                places.append(place)
        elif type(value) not in PLAIN:
            places += [place for tensor in tensors_in(value) if tensor.requires_grad]
    return places


def addends_of(call: Call) -> list[bool]:
    """For each carrier, whether the operation adds it to a product of the others (as a bias) or multiplies it."""
    if call.op is None or not call.op.addends:
        return [False] * len(call.carriers)
    return [place in call.op.addends for place in places_of(call)]


def shares_among(call: Call, takes: Sequence[bool]) -> list[float]:
    """Return shares of a product: d_i / sum d for the factors that take part, 0 for the others, 1 for what is added.

    Args:
        call: the call, with the degree d_i of each carrier (:attr:`OpCall.degrees`).
        takes: whether each carrier takes part.
    """
    degrees, added = call.degrees, addends_of(call)
    total = sum(d for d, takes_part, addend in zip(degrees, takes, added, strict=True) if takes_part and not addend)
    pairs = zip(degrees, takes, added, strict=True)
    return [1.0 if addend else d / total if takes_part else 0.0 for d, takes_part, addend in pairs]


def _in_stabilizer(relevance: bool, epsilon: Stabilizing, kept: Kept, slot: Tensor) -> Tensor:
    """Return ``R - R z / (z + e sign z)``, with the denominator as the rule computes it."""
    z = kept.value
    if not relevance and not epsilon:
        return torch.zeros_like(slot)
    if relevance:
        kept_back = slot - componentwise(torch.mul, over_stabilized(slot, z, epsilon), z)
    else:
        kept_back = componentwise(torch.mul, slot - componentwise(torch.mul, slot, over_stabilized(z, z, epsilon)), z)
    return none_of_nothing(slot, kept_back)


def _in_bias(relevance: bool, epsilon: Stabilizing, kept: Kept, constant: Callable[[], Tensor], slot: Tensor) -> Tensor:
    """Return ``R b / (z + e sign z)`` for the constant part b of z."""
    z = kept.value
    s = slot * z if epsilon and not relevance else slot
    return none_of_nothing(slot, (over_stabilized(s, z, epsilon) if relevance or epsilon else s) * constant())


def _edges_of(call: Call) -> list[Edge]:
    """Return the autograd edges of the carriers; none where an edge does not tell one carrier's slot.

    That is so for one tensor given twice, and for a view that is changed in place, whose edge autograd replaces.
    """
    edges = [edge_of(x) for x in call.carriers]
    views = call.function is not None and any(x._is_view() for x in call.carriers)
    in_place = views and mutates(call.function, call.args, call.kwargs)  # type: ignore[arg-type]
    return [] if in_place or len(set(edges)) < len(edges) else edges
