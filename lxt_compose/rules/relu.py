"""Rules for ReLU that change gradients and propagate no relevance: for comparison, in the gradient formulation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..autograd.functions import Slots, bypass
from ..autograd.numerics import check_positive
from ..errors import RuleError, place
from ..ops import Family, Op
from .base import GRADIENT, Call, Rule


@dataclass(frozen=True)
class _ReLURule(Rule):
    """Base of the rules for ReLU alone; on a block of layers they act on every ReLU inside."""

    formulations: ClassVar[tuple[str, ...]] = (GRADIENT,)
    families: ClassVar[frozenset[Family]] = frozenset({Family.ACTIVATION})

    def serves(self, op: Op, carriers: int) -> bool:
        """See :meth:`Rule.serves`."""
        return op.traits.rectifier

    def check_module(self, module: nn.Module, path: str, formulation: str) -> None:
        """See :meth:`Rule.check_module`: another activation is refused."""
        kind = type(module)
        if kind.__module__ == "torch.nn.modules.activation" and not isinstance(module, nn.ReLU):
            raise RuleError(f"{self} fits ReLU only, not {place(path)} ({kind.__name__}); use Identity()")

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        if call.op is None or not call.op.traits.rectifier:
            raise RuleError(f"{self} fits ReLU only, not {call.where}; use Identity()")
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        return [bypass(self._back, outputs[0], (call.values[0],), call.carriers)]

    def _back(self, slot: Tensor, x: Tensor) -> Slots:
        raise NotImplementedError


@dataclass(frozen=True)
class ReLUDeconvNet(_ReLURule):
    """Deconvolution: ``g_x = max(g_z, 0)``, whatever the sign of x. Gradient formulation only.

    Source: Zeiler and Fergus 2014, section 2.1.
    """

    def _back(self, slot: Tensor, x: Tensor) -> Slots:
        return (slot.clamp(min=0),)


@dataclass(frozen=True)
class ReLUGuidedBackprop(_ReLURule):
    """Guided backpropagation: ``g_x = max(g_z, 0)`` where x > 0, else 0. Gradient formulation only.

    Source: Springenberg et al. 2015, section 3.4.
    """

    def _back(self, slot: Tensor, x: Tensor) -> Slots:
        return (slot.clamp(min=0) * (x > 0),)


@dataclass(frozen=True)
class ReLUBetaSmooth(_ReLURule):
    """The gradient of a smoothed ReLU, ``softplus(beta x) / beta``: ``g_x = g_z * sigmoid(beta x)``.

    The values stay those of ReLU. Gradient formulation only.

    Args:
        beta: sharpness, > 0; toward infinity it is ReLU's own gradient.

    Raises:
        ValueError: beta is not positive or not finite.

    Source: Dombrowski et al. 2019, section 4.
    """

    beta: float = 10.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)

    def _back(self, slot: Tensor, x: Tensor) -> Slots:
        return (slot * torch.sigmoid(self.beta * x),)
