"""The rule for selective state spaces, which holds the parameters of the dynamics constant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..ops import Op, StateSpaceRole
from .base import Call, Rule


@dataclass(frozen=True)
class StateSpace(Rule):
    """In a selective state space the parameters that depend on the input are constants; the signal takes all relevance.

    ``h_t = A_t h_(t-1) + B_t x_t``, ``y_t = C_t h_t + D x_t`` with ``A_t = exp(delta_t A)``, ``B_t = delta_t B(x_t)``,
    ``C_t = C(x_t)`` and ``delta_t = softplus(...)``: with A_t, B_t and C_t constant, y is linear in x, and
    ``R_x = x * J^T (R_y / y)`` conserves relevance. The rule holds B and C where the projection is split into them, and
    delta where softplus computes it; relevance passes the first part of the split.

    Source: Jafari et al. 2024 (MambaLRP), section 4.2.
    """

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        return call.carriers[place]

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        passing = len(outputs) - 2 if len(outputs) > 2 else 0
        return [z if place < passing else z.detach() for place, z in enumerate(outputs)]


def is_state_space(module: nn.Module) -> bool:
    """Return whether a module runs a selective state space.

    It owns the logarithm of its decay, A_log, and its skip, D.
    """
    return {"A_log", "D"} <= module._parameters.keys()


def makes_parameters(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call in such a module computes delta, or splits off B and C: two last parts of the same size."""
    if op.traits.state_space is StateSpaceRole.STEP_SIZE:
        return True
    sizes = kwargs.get("split_sizes", kwargs.get("split_size_or_sections", args[1] if len(args) > 1 else None))
    return isinstance(sizes, (tuple, list)) and len(sizes) > 2 and sizes[-1] == sizes[-2]
