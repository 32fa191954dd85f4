"""Activation modules: a module that turns out to be one elementwise function of its input is one unit, under Identity.

What such a module computes may be written out (``0.5 * x * (1 + tanh(...))``), and the default rules of its steps
would not add up to the identity rule. It is recognized while it runs, by what it does and not by its name: a module
without children or weights, with one input that carries relevance, all of whose steps are elementwise, with numbers as
constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..autograd.trees import tensors_in
from ..coverage.rows import Status
from ..coverage.tally import Count, Tally
from ..ops import Elementwise, Family, Op
from ..rules import Call, Identity

RULE = Identity()
_ELEMENTWISE = frozenset({Family.ACTIVATION, Family.PRODUCT, Family.DIVISION})


def may_be_unit(module: nn.Module) -> bool:
    """Whether a module can be one elementwise function: it has no children, and no parameter of more than one element.

    Activations of torch itself are one operation, and the rules of operations serve them.
    """
    if type(module).__module__.startswith("torch.nn.") or next(module.children(), None) is not None:
        return False
    return all(parameter.numel() == 1 for parameter in module.parameters())


class Unit:
    """What is known of such a module while it runs."""

    __slots__ = ("_derived", "_elementwise", "_nonlinear", "_steps", "_version", "counts", "x")

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.counts: list[Count] = []
        """The rows that its steps were counted in, once for each time."""
        self._version = x._version
        self._derived = {id(x): x}
        self._elementwise, self._nonlinear, self._steps = True, False, 0

    def see(
        self, op: Op | None, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, *, drop_in: bool = False
    ) -> None:
        """Note one call inside the module; ``op`` is None for what carries no relevance (a comparison, a shape)."""
        self._elementwise &= not drop_in  # that has a rule of its own
        if not self._elementwise:
            return
        given = list(tensors_in((args, kwargs)))
        derived = [tensor for tensor in given if id(tensor) in self._derived]
        if not derived:
            return
        self._derived |= {id(tensor): tensor for tensor in tensors_in(output)}
        if op is None:
            return
        self._steps += 1
        kind = op.traits.elementwise
        self._nonlinear |= op.family is Family.ACTIVATION or kind is Elementwise.NONLINEAR or len(derived) > 1
        known = op.family in _ELEMENTWISE or kind is not None
        sizes = {tensor.numel() for tensor in given if id(tensor) not in self._derived} - {1}
        sizes |= {tensor.numel() for tensor in tensors_in(output)} - {self.x.numel()}
        self._elementwise = known and not sizes

    def holds(self, output: Any) -> bool:
        """Whether the module was one elementwise function, of several steps, that gave this output."""
        if not (self._elementwise and self._nonlinear and self._steps > 1 and isinstance(output, Tensor)):
            return False
        mine = output is not self.x and id(output) in self._derived and output.shape == self.x.shape
        return mine and output.is_floating_point() and self.x._version == self._version

    def leave(self, formulation: str, where: str, module: nn.Module, output: Tensor) -> Tensor:
        """The output with the identity rule as its only way back to the input."""
        call = Call(formulation, where, (self.x,), {}, module=module, carriers=[self.x], values=[self.x])
        return RULE.leave(call, [output])[0]

    def uncount(self, tally: Tally, path: str) -> None:
        """Take the steps off the counts; those that a key of the user's matches are counted as shadowed by the unit."""
        for count in self.counts:
            count.calls -= 1
            if count.key.key is not None:
                tally.count(count.key._replace(status=Status.SHADOWED, note=f"inside {path}")).calls += 1
