"""Split rules, which treat positive and negative contributions separately, in layers that are linear in their input.

The contribution of input i to output j is ``c_ij = x_i w_ij``. The forward pass is the layer's own; what a split rule
needs beside it, products of the layer with parts of its weight, is computed in the backward pass.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..autograd.functions import Slots, backward_of, bypass
from ..autograd.numerics import narrowed, stabilize
from ..autograd.saved_values import Kept, keep
from ..autograd.sharded import added_up
from ..errors import RuleError, place
from ..ops import Family, Op
from . import probes
from .absorption import BIAS, STABILIZER
from .base import Amount, Call, Rule, only_output
from .linear_layers.jacobian import layer_of
from .linear_layers.layer import LAYER_TYPES, Layer, in_pieces, without_autocast
from .linear_layers.weight_parts import Part

# Modules of torch that are no layers: refused when a rule is registered, not when they first run.
_NOT_LINEAR = ("activation", "instancenorm", "loss", "normalization", "rnn")
Term = tuple[float, Tensor, Tensor]
"""A share a of the relevance, the denominators that it is divided by, and the bias's part in them."""
_NOT_LINEAR_POOLS = ("MaxPool", "AdaptiveMaxPool", "FractionalMaxPool", "LPPool")


@dataclass(frozen=True)
class Split(Rule):
    """Base of the rules that treat positive and negative contributions separately.

    On a layer, a rule of this kind works by itself. On a block of layers it is given to every linear layer and
    convolution inside; the other operations there get their default rules. A layer of any other make is taken as a
    whole, and differentiated to find its weight, if it is linear in its input.
    """

    families: ClassVar[frozenset[Family]] = frozenset({Family.LINEAR, Family.CONTRACTION})

    def by_pieces(self, x: Tensor) -> bool:
        """Return whether large batches are worked on piece by piece.

        A stabilizer that is a function may look at all of it.
        """
        return not callable(getattr(self, "epsilon", 0.0))

    def serves(self, op: Op, carriers: int) -> bool:
        """See :meth:`Rule.serves`: operations of one input and a constant weight, no products of two carriers."""
        return op.traits.has_weight and (carriers == 1 or op.traits.weight is not None)

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
        """Return what is kept of the input and the output for the backward pass."""
        return x, z

    def _back(self, layer: Layer, relevance: bool, slot: Tensor, x: Tensor, z: Tensor) -> Slots:
        with torch.no_grad(), without_autocast(x):
            # Not in half precision, where R over a small sum overflows; and autocast gives x another dtype than W.
            wide, given = layer.dtype, x.dtype

            def pull(slot: Tensor, x: Tensor, z: Tensor) -> Tensor:
                x, z, r = x.to(wide), added_up(z.to(wide)), slot.to(wide)
                return narrowed(self.pull(layer, r if relevance else r * z, x, z, relevance), given)

            return (in_pieces(layer, pull, slot, x, z) if self.by_pieces(x) else pull(slot, x, z),)

    def pull(self, layer: Layer, r: Tensor, x: Tensor, z: Tensor, relevance: bool) -> Tensor:
        """Return the relevance of x from r, the relevance of z; in the gradient formulation the relevance over x."""
        raise NotImplementedError

    def terms(self, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
        """Return the terms of the rule, ``R_i = sum over terms of a * (a part of c_ij) / D_j * R_j``.

        A rule need not give them: then they are found by adding inputs to the layer (:mod:`.probes`), and calling
        :meth:`pull` for their relevance.

        Args:
            layer: the layer.
            x: its input.
            z: its output without the bias.
            bias: the bias as it broadcasts to the output, 0 if there is none.

        Returns:
            For each term a, its denominators D, and the part B that the bias has in them.
        """
        raise NotImplementedError

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: ``sum of a R B / D`` stays in the bias, ``sum of a R (1 - D / stabilized D)`` too.

        The former is what the bias would get as the weight of one more input of value 1.
        """
        layer = _layer_behind(call.z) or (layer_of(self, call, call.z) if call.rerun is not None else None)
        if layer is None or not call.carriers:
            return {}
        x, z = keep(call.values[0]), keep(call.z)
        kinds = [BIAS] if layer.offset is not None and self.counts_bias else []
        if call.rerun is not None:
            kinds.append(STABILIZER)
        return {kind: partial(self._kept, kind, layer, call.relevance, x, z) for kind in kinds}

    def rest(self, call: Call) -> str:
        """See :meth:`Rule.rest`."""
        return STABILIZER

    @property
    def counts_bias(self) -> bool:
        """Whether the bias of a layer gets its share."""
        return not getattr(self, "zero_bias", False)

    def _kept(self, kind: str, layer: Layer, relevance: bool, x: Kept, z: Kept, slot: Tensor) -> Tensor:
        wide = layer.dtype
        inputs, outputs, r = x.value.to(wide), z.value.to(wide), slot.to(wide)
        r = r if relevance else r * outputs
        with without_autocast(inputs):
            if not _gives_terms(type(self)):
                return (
                    probes.in_bias(self, layer, r, inputs)
                    if kind == BIAS
                    else probes.in_stabilizer(self, layer, r, inputs)
                )
            bias = outputs.new_zeros(()) if layer.offset is None else layer.offset.to(wide)
            found, epsilon = torch.zeros_like(r), getattr(self, "epsilon", 0.0)
            for share, denominator, added in self.terms(layer, inputs, outputs - bias, bias):
                s = share * r / stabilize(denominator, epsilon)
                found += s * added if kind == BIAS else share * r - s * denominator
        return found


def _gives_terms(kind: type) -> bool:
    """Return whether a class defines terms together with its pull, or inherits both."""

    def owner(name: str) -> type:
        return next(base for base in kind.__mro__ if name in vars(base))

    return owner("terms") is not Split and issubclass(owner("terms"), owner("pull"))


def _layer_behind(z: Tensor) -> Layer | None:
    """Return the layer of the split rule that made the node of an output, if one did."""
    step = backward_of(z)
    given = step.args[0] if isinstance(step, partial) and step.args else None
    return given if isinstance(given, Layer) else None


def unless(condition: bool, part: Part) -> Part | None:
    """Return the part of the bias that counts; 0 where the bias is left out."""
    return None if condition else part


@dataclass(frozen=True)
class Emphasis:
    """``W + gamma * max(W, 0)``: a part of a weight, in which what is positive weighs more."""

    gamma: float

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the part of this weight."""
        return weight.add(weight.clamp(min=0), alpha=self.gamma)
