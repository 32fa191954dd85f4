"""The epsilon rule for products, shared evenly by the factors."""

from dataclasses import dataclass

from .base import Call
from .scaling import Scaling, again_by_shares, shares_among


@dataclass(frozen=True)
class UniformEpsilon(Scaling):
    """Epsilon, shared evenly by the n factors of a product that carry relevance.

    ``O = A V``: ``R_A = 1/2 * A * (R_O / (O + epsilon * sign(O)) V^T)`` and likewise for V; with a constant factor
    n = 1 and it is :class:`Epsilon`. What is added to the product (a bias) keeps its share in full. As a default it
    counts the factors that each operand holds, as :class:`Uniform` does: ``(Q K^T) V`` is shared as ``Q (K^T V)`` is.

    Args:
        epsilon: stabilizer, >= 0 (see :class:`Epsilon`).

    Raises:
        ValueError: epsilon is negative or not finite.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.3.
    """

    again = again_by_shares

    def shares(self, call: Call) -> list[float]:
        """Return 1/n for each of the n factors, 1 for what is added."""
        return shares_among(call, [True] * len(call.carriers))
