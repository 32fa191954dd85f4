"""Activation modules: a module that computes one elementwise function of its input is one unit, under Identity.

Such a module may write its function out (``0.5 * x * (1 + tanh(...))``), and the default rules of its steps would not
add up to the identity rule. It is recognized while it runs, by its operations and not by its name: a module without
weights, with one input that carries relevance, all of whose steps are elementwise, with numbers as constants. Steps
that run in modules inside of it are steps of it; a module inside of it that is a unit itself is one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..autograd.nodes import origin_of
from ..autograd.trees import tensors_in
from ..coverage.rows import Status
from ..coverage.tally import Count, Tally
from ..ops import Elementwise, Family, Op
from ..rules import Call, Identity
from ..torch_internals.backward_hooks import HOOKED_NODE

RULE = Identity()


class Site(Protocol):
    """A module of the model, and how often it turned out to be a unit."""

    units: int


_ELEMENTWISE = frozenset({Family.ACTIVATION, Family.PRODUCT, Family.DIVISION})


def may_be_unit(module: nn.Module, bound: Set[nn.Module]) -> bool:
    """Return whether a module can be one elementwise function: it has no parameter of more than one element.

    Activations of torch itself are one operation, and the rules of operations serve them.

    Args:
        module: the module.
        bound: the modules that a key of the user's matches; where one is inside, its own rule goes first.
    """
    if type(module).__module__.startswith("torch.nn.") or any(p.numel() != 1 for p in module.parameters()):
        return False
    return bound.isdisjoint(module.modules())


class Unit:
    """What is known, while it runs, of a module that may be one elementwise function.

    Args:
        x: its input.
        around: the unit that it runs inside of, if there is one.
    """

    __slots__ = (
        "_derived", "_elementwise", "_inside", "_last", "_nonlinear", "_steps", "_version", "around", "counts", "x",
    )  # fmt: skip

    def __init__(self, x: Tensor, around: Unit | None = None) -> None:
        self.x, self.around = x, around
        self.counts: list[Count] = []
        """The rows that its steps were counted in, once for each time."""
        self._version = x._version
        self._derived = {id(x): x}
        self._elementwise, self._nonlinear, self._steps = True, False, 0
        self._inside: list[Site] = []
        self._last: tuple[Any, ...] | None = None
        """The call that was seen last: it is looked into when it is clear that it is not the only one."""
        if around is not None:
            around._look()

    def see(self, op: Op | None, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, *, drop_in: bool) -> None:
        """Note one call inside the module; ``op`` is None for what carries no relevance (a comparison, a shape)."""
        self._elementwise &= not drop_in  # a drop-in has a rule of its own
        moves = op is not None and op.family is Family.MOVEMENT
        if self._elementwise and (not moves or torch.is_grad_enabled()):  # else it is a full backward hook's
            self._look()
            self._last = op, args, kwargs, output

    def _look(self) -> None:
        """Follow the call that was seen last."""
        if self._last is None:
            return
        (op, args, kwargs, output), self._last = self._last, None
        given = list(tensors_in((args, kwargs)))
        derived = [tensor for tensor in given if self._comes_from(tensor)]
        if not derived:
            return
        self._derived |= {id(tensor): tensor for tensor in tensors_in(output)}
        if op is None:
            return
        self._steps += 1
        kind = op.traits.elementwise
        self._nonlinear |= op.family is Family.ACTIVATION or kind is Elementwise.NONLINEAR or len(derived) > 1
        known = (op.family in _ELEMENTWISE and op.traits.element_sum is None) or kind is not None
        constants = all(tensor.numel() == 1 for tensor in given if id(tensor) not in self._derived)
        self._elementwise = known and constants and all(out.numel() == self.x.numel() for out in tensors_in(output))

    def _comes_from(self, tensor: Tensor) -> bool:
        """Return whether a tensor was computed from the input here, or stands for one in a full backward hook."""
        if id(tensor) not in self._derived and type(tensor.grad_fn) is HOOKED_NODE:
            edge = origin_of(tensor)
            if any(x.requires_grad and origin_of(x) == edge for x in self._derived.values()):
                self._derived[id(tensor)] = tensor
        return id(tensor) in self._derived

    def holds(self, output: Any) -> bool:
        """Return whether the module was one elementwise function, of several steps, that gave this output."""
        if self._elementwise and (self._steps or self.around is not None):
            self._look()
        if not (self._elementwise and self._nonlinear and self._steps > 1 and isinstance(output, Tensor)):
            return False
        mine = output is not self.x and self._comes_from(output) and output.shape == self.x.shape
        return mine and output.is_floating_point() and self.x._version == self._version

    def leave(self, formulation: str, where: str, module: nn.Module, output: Tensor) -> Tensor:
        """Return the output, whose only path back to the input is the identity rule."""
        call = Call(formulation, where, (self.x,), {}, module=module, carriers=[self.x], values=[self.x])
        return RULE.leave(call, [output])[0]

    def end(self, output: Any, unit_of: Site | None) -> None:
        """Add what ran in this module to the unit around it, if there is one.

        Args:
            output: the output of the module.
            unit_of: the module, if it turned out to be a unit: then it is one step, else each of its steps is.
        """
        around = self.around
        if around is None:
            return
        around._elementwise &= self._elementwise and around._comes_from(self.x)
        around._nonlinear |= self._nonlinear
        around.counts += self.counts
        around._inside += self._inside
        if unit_of is None:
            around._steps += self._steps
            around._derived |= self._derived
        else:
            around._steps += 1
            around._inside.append(unit_of)
            around._derived[id(output)] = output

    def uncount(self, tally: Tally, path: str) -> None:
        """Subtract the steps from the counts; count those that a user's key matches as shadowed by the unit."""
        for count in self.counts:
            count.calls -= 1
            if count.key.key is not None:
                tally.count(count.key._replace(status=Status.SHADOWED, note=f"inside {path}")).calls += 1
        for site in self._inside:
            site.units -= 1
        self.counts, self._inside = [], []
