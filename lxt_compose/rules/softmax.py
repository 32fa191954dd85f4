"""The rule for softmax."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..autograd.functions import Slots, bypass, taylor_softmax
from ..ops import Family
from .absorption import BIAS, SOFTMAX, left_over
from .base import Amount, Call, Rule
from .epsilon import Epsilon

_TAYLOR = Epsilon(0.0)


@dataclass(frozen=True)
class SoftmaxTaylor(Rule):
    """Softmax by a Taylor expansion at the input: what its bias absorbs is not handed on.

    ``R_x = x * (R_s - s * sum_i R_i)`` with ``s = softmax(x)``, the sum over the softmax dimension; inputs of -inf
    (masked ones) get 0. In the gradient formulation it is softmax's own gradient, ``g_x = s * (g - sum_i s_i g_i)``.
    For log_softmax and logsumexp it is the same expansion, ``R_x = x * J^T (R_z / z)``.

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
        dim = softmax_dim(call)
        sign = _sign(call)
        if call.relevance:
            return [bypass(partial(taylor_softmax, dim, sign), s, (call.values[0], s), call.carriers)]
        return [bypass(partial(_own_gradient, dim, sign), s, (s,), call.carriers)]

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`."""
        return not call.relevance and not self._is_softmax(call)

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: ``R - x * (R - s * sum R)``, the bias of the expansion."""
        if not self._is_softmax(call):
            found = _TAYLOR.absorbed(call)
            if call.rerun is not None:
                found = {SOFTMAX: partial(left_over, call, [1.0], 0.0), **found}
                found.pop(BIAS, None)
            return found
        return {} if call.rerun is None else {SOFTMAX: partial(_in_bias, call)}

    def rest(self, call: Call) -> str:
        """See :meth:`Rule.rest`."""
        return SOFTMAX

    def _is_softmax(self, call: Call) -> bool:
        return call.op is not None and call.op.traits.softmax_sign is not None


def softmax_dim(call: Call) -> int:
    """The dimension of a softmax call; where it is left out, the one that torch would take."""
    dim: Any = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    if dim is None:
        return 0 if call.values[0].dim() in (0, 1, 3) else 1
    return int(dim)


def _sign(call: Call) -> float:
    return 1.0 if call.op is None or call.op.traits.softmax_sign is None else call.op.traits.softmax_sign


def _in_bias(call: Call, slot: Tensor) -> Tensor:
    r, x, s = call.relevance_in(slot), _sign(call) * call.values[0], call.z
    handed_on = x * (r - s * r.sum(softmax_dim(call), keepdim=True)).to(x.dtype)
    return r - torch.where(x.isinf(), 0, handed_on)


def _own_gradient(dim: int, sign: float, slot: Tensor, s: Tensor) -> Slots:
    weighted = s * slot
    slot = weighted - s * weighted.sum(dim, keepdim=True)
    lost = s.narrow(dim, 0, 1).isnan()  # all of a row was masked: -inf everywhere
    if lost.any():
        slot = slot.masked_fill(lost, 0)
    return (slot if sign == 1 else -slot,)
