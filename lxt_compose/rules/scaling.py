"""Scaling rules: the operation's own gradient does the work, only its borders are scaled."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..autograd.functions import Damp, OverOutput, Share, TimesInput
from ..autograd.numerics import Stabilizing, check_epsilon
from ..autograd.trees import tensors_in
from .base import Call, Rule


@dataclass(frozen=True)
class Scaling(Rule):
    """Base of the rules of the form ``R_x = share * x * J^T (R / z)`` with a share for each carrier x."""

    knows_complex: ClassVar[bool] = True

    epsilon: Stabilizing = 1e-6

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


def addends_of(call: Call) -> list[bool]:
    """For each carrier, whether the operation adds it to a product of the others (as a bias) or multiplies it."""
    addends = call.op.addends if call.op is not None else frozenset[int | str]()
    places: list[tuple[int | str, object]] = [*enumerate(call.args), *call.kwargs.items()]
    return [place in addends for place, value in places for tensor in tensors_in(value) if tensor.requires_grad]
