"""The rule that passes relevance unchanged through anything."""

from dataclasses import dataclass

from torch import Tensor

from ..autograd.numerics import stabilize
from .base import Call
from .identity import ElementwiseRule
from .slopes import Slope


@dataclass(frozen=True)
class Pass(ElementwiseRule):
    """Relevance passes a whole module or operation unchanged, whatever it computes; reshaped where shapes differ.

    ``R_x = R_z``. In the gradient formulation ``g_x = g_z * z / (x + epsilon * sign(x))``, epsilon the resolution.
    Unlike :class:`Identity` it knows no closed forms and expects no elementwise function.

    Raises:
        RuleError: there are several carriers or outputs, or input and output differ in their number of elements.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.4.
    """

    def slope(self, call: Call, x: Tensor, z: Tensor) -> Slope:
        """Return what the gradient is multiplied with."""
        return Slope(_plain_ratio, (x, z))


def _plain_ratio(x: Tensor, z: Tensor) -> Tensor:
    return z.reshape(x.shape) / stabilize(x, 0.0)
