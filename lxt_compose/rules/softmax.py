"""The rule for softmax."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..autograd.functions import Slots, bypass, graft, taylor_softmax
from ..ops import Family
from ..torch_internals import is_batched
from ..torch_internals.traces import is_traced
from .absorption import BIAS, SOFTMAX, left_over
from .base import Amount, Call, Rule
from .epsilon import Epsilon

_TAYLOR = Epsilon(0.0)
Total = Callable[[Tensor], Tensor]
"""Sums over the terms of a softmax, in a shape that broadcasts to them: along a dimension, or in groups by an index."""


@dataclass(frozen=True)
class SoftmaxTaylor(Rule):
    """Softmax by a Taylor expansion at the input, whose bias absorbs the rest.

    ``R_x = x * (R_s - s * sum_i R_i)`` with ``s = softmax(x)``, the sum over the softmax dimension; inputs of -inf
    (masked ones) get 0. In the gradient formulation it is softmax's own gradient, ``g_x = s * (g - sum_i s_i g_i)``.
    For log_softmax, logsumexp, logaddexp and logcumsumexp it is the same expansion, ``R_x = x * J^T (R_z / z)``.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.1.
    """

    families: ClassVar[frozenset[Family]] = frozenset({Family.SOFTMAX})

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        if not self._is_softmax(call):
            return _TAYLOR.enter(call, place)
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if not self._is_softmax(call):
            return _TAYLOR.leave(call, outputs)
        (s,) = outputs
        total, sign = _total(call), _sign(call)
        if call.relevance:
            return [bypass(partial(taylor_softmax, total, sign), s, (call.values[0], s), call.carriers)]
        return [bypass(partial(_own_gradient, total, sign), s, (s,), call.carriers)]

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`."""
        return not call.relevance and not self._is_softmax(call)

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: ``R - x * (R - s * sum R)``, the bias of the expansion."""
        if not self._is_softmax(call):
            found = _TAYLOR.absorbed(call)
            if call.rerun is not None:
                found = {SOFTMAX: partial(left_over, call, [1.0] * len(call.carriers), 0.0), **found}
                found.pop(BIAS, None)
            return found
        return {} if call.rerun is None else {SOFTMAX: partial(_in_bias, call)}

    def rest(self, call: Call) -> str:
        """See :meth:`Rule.rest`."""
        return SOFTMAX

    def _is_softmax(self, call: Call) -> bool:
        return call.op is not None and call.op.traits.softmax_sign is not None


def softmax_of(x: Tensor, total: Total, value: Tensor) -> Tensor:
    """Return `value`, which is ``softmax(x)``, as a function of x: ``value * exp(d) / sum of (value * exp(d))``, d = 0.

    It stands for a softmax that a model computes in several steps.

    Args:
        x: the scores; -inf where they are masked.
        total: sums over the terms of one softmax.
        value: what the model has computed.
    """
    if not x.requires_grad:
        return value
    d = _difference(x)
    return graft(value, value * d.exp() / (1 + total(value * d.expm1())))


def log_softmax_of(x: Tensor, total: Total, value: Tensor) -> Tensor:
    """Return `value`, which is ``log_softmax(x)``, as a function of x; see :func:`softmax_of`."""
    if not x.requires_grad:
        return value
    d = _difference(x)
    return graft(value, value + d - total(value.exp() * d.expm1()).log1p())


def log_of(s: Tensor, total: Total, value: Tensor) -> Tensor:
    """Return `value`, the logarithm of a softmax s, as a function of s; elements where s is 0 pass nothing on."""
    if not s.requires_grad:
        return value
    zero = s.detach() == 0
    return graft(value, value + (s - s.detach()) / s.detach().masked_fill(zero, math.inf))


def logsumexp_of(x: Tensor, total: Total, value: Tensor) -> Tensor:
    """Return `value`, the logarithm of the `total` of ``exp(x)``, as a function of x; see :func:`softmax_of`."""
    if not x.requires_grad:
        return value
    with torch.enable_grad():
        v = torch.zeros_like(x, requires_grad=True)
        summed = total(v)
        spread, weight = (torch.autograd.grad(summed, v, g, retain_graph=True)[0] for g in (value, value * 0 + 1))
    p = (x.detach() - spread / torch.where(weight == 0, 1, weight)).exp().nan_to_num(0)
    return graft(value, value + total(p * _difference(x).expm1()).log1p())


def _difference(x: Tensor) -> Tensor:
    """Return 0, with the derivative of x; constant where x is infinite."""
    masked = x.isinf()
    return x.masked_fill(masked, 0) - x.detach().masked_fill(masked, 0)


def _total(call: Call) -> Total:
    """Return how to sum over the terms of a softmax; along the dimension that torch would take where none is given."""
    given: Any = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    if callable(given):
        return given
    if given is None:
        given = 0 if call.values[0].dim() in (0, 1, 3) else 1
    return partial(torch.sum, dim=int(given), keepdim=True)


def _sign(call: Call) -> float:
    return 1.0 if call.op is None or call.op.traits.softmax_sign is None else call.op.traits.softmax_sign


def _in_bias(call: Call, slot: Tensor) -> Tensor:
    r, x, s = call.relevance_in(slot), _sign(call) * call.values[0], call.z
    handed_on = x * (r - s * _total(call)(r)).to(x.dtype)
    return r - torch.where(x.isinf(), 0, handed_on)


def _own_gradient(total: Total, sign: float, slot: Tensor, s: Tensor) -> Slots:
    weighted = s * slot
    mean = total(weighted)
    slot = weighted - s * mean
    if is_traced() or is_batched(mean) or mean.isnan().any():
        slot = slot.masked_fill(s.isnan(), 0)  # all of a row was masked: -inf everywhere
    return (slot if sign == 1 else -slot,)
