"""The rule for lengths, spreads and other homogeneous functions."""

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ..autograd.functions import FiniteAtZero, Share, TimesInput
from ..autograd.numerics import Stabilizing, check_number
from ..ops import Argument
from .absorption import CONSTANT, left_over
from .base import Amount, OpCall
from .scaling import Scaling
from .spelling import QUIET


@dataclass(frozen=True)
class Homogeneous(Scaling):
    """A function with ``f(t x) = t ** p * f(x)`` passes all of its relevance: gradient times input, over p.

    ``R_x = 1/p * x * J^T (R_z / (z + epsilon * sign(z)))``; in the gradient formulation ``g_x = 1/p * J^T g_z``. By
    Euler's theorem ``x * J^T = p * f(x)``, so nothing is lost. For the length of a vector ``R_i = R * x_i^2 / |x|^2``,
    for standard deviation and variance ``R_i = R * x_i (x_i - mean) / sum_k (x_k - mean)^2``: their degrees are 1 and
    2. Several carriers (hypot, the distance of two points) share by the same formula: of a distance x gets
    ``R_i = R * x_i (x_i - y_i) / |x - y|^2``. Where all of x is 0, f may have no derivative: then it is taken as 0.

    Such functions are statistics only where something is divided by them, and a division holds its divisor constant.

    Args:
        epsilon: stabilizer, >= 0 (see :class:`Epsilon`).
        degree: p; by default the degree of the operation, and 1 where that is unknown.

    Raises:
        ValueError: epsilon is negative or not finite, or the degree is not positive.

    Source: Euler's theorem on homogeneous functions; gradient times input for those of degree 1 as in Montavon et al.
    2018, section 5.1.
    """

    degree: float | None = field(default=None, metadata=QUIET)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.degree is not None:
            check_number("degree", self.degree, low=0.0)
            if self.degree == 0:
                raise ValueError("degree must be above 0: a function of degree 0 has no gradient along its input")

    def shares(self, call: OpCall) -> list[float]:
        """Return 1/p for each carrier."""
        degree = self.degree or (1.0 if call.op is None else call.op.traits.degree)
        if isinstance(degree, Argument):
            degree = float(degree.of(call.args, call.kwargs))
        return [1.0 / degree] * len(call.carriers)

    def enter(self, call: OpCall, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        x, share = call.carriers[place], self.shares_of(call)[place]
        if call.relevance:
            x = TimesInput.apply(x, share)
        elif share != 1:
            x = Share.apply(x, share)
        result: Tensor = FiniteAtZero.apply(x)
        return result

    def absorbed(self, call: OpCall) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: the part of a constant operand, as of hypot."""
        found = super().absorbed(call)
        if call.rerun is not None:
            found[CONSTANT] = partial(_due_to_constants, call, self.shares(call), self.epsilon)
        return found

    def rest(self, call: OpCall) -> str:
        """See :meth:`Rule.rest`."""
        return CONSTANT

    def idle(self, call: OpCall) -> bool:
        """See :meth:`Rule.idle`: where the derivative is infinite, it must become 0."""
        return False


def _due_to_constants(call: OpCall, shares: list[float], epsilon: Stabilizing, slot: Tensor) -> Tensor:
    return left_over(call, shares, epsilon, slot).masked_fill(call.z == 0, 0)
