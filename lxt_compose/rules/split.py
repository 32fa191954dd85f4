"""Split rules: positive and negative contributions are treated apart, in layers that are linear in their input.

The contribution of input i to output j is ``c_ij = x_i w_ij``. The forward pass is the layer's own; what a split rule
needs beside it, products of the layer with parts of its weight, is computed in the backward pass.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..autograd.functions import Slots, bypass
from ..autograd.numerics import may_write_over, narrowed
from ..errors import RuleError, place
from ..ops import Family, Op
from .base import Call, Rule, only_output
from .linear_layers.jacobian import layer_of
from .linear_layers.layer import LAYER_TYPES, Layer, in_pieces, without_autocast
from .linear_layers.weight_parts import Part

# Modules of torch that are no layers: refused when a rule is registered, not when they first run.
_NOT_LINEAR = ("activation", "instancenorm", "loss", "normalization", "rnn")
_NOT_LINEAR_POOLS = ("MaxPool", "AdaptiveMaxPool", "FractionalMaxPool", "LPPool")


@dataclass(frozen=True)
class Split(Rule):
    """Base of the rules that treat positive and negative contributions apart.

    On a layer, a rule of this kind works by itself. On a block of layers it is given to every linear layer and
    convolution inside; the other operations there get their default rules. A layer of any other make is taken as a
    whole, and differentiated to find its weight, if it is linear in its input.
    """

    families: ClassVar[frozenset[Family]] = frozenset({Family.LINEAR, Family.CONTRACTION})

    def by_pieces(self, x: Tensor) -> bool:
        """Whether large batches are worked on piece by piece; a stabilizer that is a function may look at all of it."""
        return not callable(getattr(self, "epsilon", 0.0))

    def serves(self, op: Op, carriers: int) -> bool:
        """See :meth:`Rule.serves`: operations of one input and a constant weight, no products of two carriers."""
        layer = op.traits.layer
        return layer is not None and layer.has_weight and (carriers == 1 or op.traits.weight is not None)

    def takes_whole(self, module: nn.Module) -> bool:
        """See :meth:`Rule.takes_whole`: a layer that is no known one, and no block of layers."""
        return not isinstance(module, LAYER_TYPES) and next(module.children(), None) is None

    def check_module(self, module: nn.Module, path: str, formulation: str) -> None:
        """See :meth:`Rule.check_module`: a module of torch that is known not to be linear is refused."""
        kind = type(module)
        file = kind.__module__.removeprefix("torch.nn.modules.")
        if (file in _NOT_LINEAR and not any(module.children())) or (
            file == "pooling" and kind.__name__.startswith(_NOT_LINEAR_POOLS)
        ):
            raise RuleError(
                f"{self} fits layers that are linear in their input, and {place(path)} ({kind.__name__}) is not; use "
                f"Identity() for an activation, Norm() for a normalization, no rule at all for max pooling, "
                f"and Epsilon() for any other differentiable module"
            )

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        z = only_output(self, call, outputs).detach()
        layer = layer_of(self, call, z)
        saved = self.saved(call.values[0].detach(), z)
        return [bypass(partial(self._back, layer, call.relevance), z, saved, call.carriers)]

    def saved(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of the input and the output for the backward pass."""
        return x, z

    def _back(self, layer: Layer, relevance: bool, slot: Tensor, x: Tensor, z: Tensor) -> Slots:
        if slot.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"{self} cannot be differentiated twice: call backward() without create_graph=True")
        with torch.no_grad(), without_autocast(x):
            # Not in half precision, where R over a small sum overflows; and autocast gives x another dtype than W.
            wide, given = layer.dtype, x.dtype

            def pull(slot: Tensor, x: Tensor, z: Tensor) -> Tensor:
                x, z, r = x.to(wide), z.to(wide), slot.to(wide)
                return narrowed(self.pull(layer, r if relevance else r * z, x, z, relevance), given)

            return (in_pieces(layer, pull, slot, x, z) if self.by_pieces(x) else pull(slot, x, z),)

    def pull(self, layer: Layer, r: Tensor, x: Tensor, z: Tensor, relevance: bool) -> Tensor:
        """The relevance of x from r, the relevance of z; in the gradient formulation the relevance over x."""
        raise NotImplementedError


def unless(condition: bool, part: Part) -> Part | None:
    """The part of the bias that counts, unless it is left out."""
    return None if condition else part


def is_nonnegative(x: Tensor) -> bool:
    """Whether no element is negative."""
    return not x.numel() or bool(x.amin() >= 0)


def is_anywhere(excess: Tensor, r: Tensor) -> bool:
    """Whether `excess` is not 0 somewhere where there is relevance; takes its memory.

    For several slots at a time (``is_grads_batched``) nothing can depend on values, so the answer is yes.
    """
    if not excess.numel():
        return False
    if not may_write_over(r):
        return True
    low, high = excess.mul_(r).aminmax()
    return not (low == 0 and high == 0)


@dataclass(frozen=True)
class Emphasis:
    """``W + gamma * max(W, 0)``: a part of a weight, in which what is positive weighs more."""

    gamma: float

    def __call__(self, weight: Tensor) -> Tensor:
        """The part of this weight."""
        return weight.add(weight.clamp(min=0), alpha=self.gamma)
