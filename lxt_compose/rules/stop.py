"""The rule that stops relevance."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .again import Again
from .base import Call, Rule


@dataclass(frozen=True)
class Stop(Rule):
    """No relevance passes: ``R_x = 0``. The output becomes a constant, also for the operations that use it.

    Source: Ali et al. 2022 (CP-LRP), which stops queries and keys; sections 3.2 and 3.3.
    """

    knows_complex: ClassVar[bool] = True

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        return [z.detach() for z in outputs]

    def again(self, call: Call, output: Tensor) -> Again | None:
        """See :meth:`Rule.again`: a constant."""
        return Again(lambda carriers, z, args, kwargs: z.detach()) if len(call.carriers) == 1 else None
