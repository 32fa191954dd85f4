"""Products with the powers of a softmax that a model divides by their sum later: ``(e @ v) / e.sum()``."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from ..autograd.trees import map_tensors
from ..ops import LayerKind, Op
from ..torch_internals import modes_off
from .linear_steps import Grouped, Step, Total
from .powers import Powers

Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Runs a function as a part of the model."""


class Spread:
    """A product of powers and another carrier, ``e v``, which a model may sum and divide by the sum of e later.

    Args:
        powers: what is known of e.
        e: the powers.
        op: the product.
        function: its function.
        args: the arguments, e among them.
        kwargs: its keyword arguments.
    """

    __slots__ = ("_args", "_e", "_kwargs", "_op", "_version", "function", "other", "powers", "steps")

    def __init__(
        self,
        powers: Powers,
        e: Tensor,
        op: Op,
        function: Callable[..., Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.powers, self.function, self._args, self._kwargs = powers, function, args, kwargs
        self._e, self._op, self._version = e, op, e._version
        self.steps: tuple[Step, ...] = ()
        self.other: Spread | None = None
        """The same with the roles exchanged, where v is a power too."""

    def then(self, step: Step) -> Spread | None:
        """Return the same after it was summed, moved or scaled; None if it is no longer known."""
        if not (step.sums or step.moves or step.scales):
            return None
        other = copy(self)
        other.steps = (*self.steps, step)
        other.other = self.other and self.other.then(step)
        return other

    def of(self, whole: Powers) -> Spread:
        """Return the product with those powers for e that `whole` is of, if one factor is."""
        other = self.other
        if other is None or self.powers.exponents.same(whole.exponents):
            return self
        return other

    def over(self, whole: Powers) -> tuple[Tensor, Total] | None:
        """Return the softmax, and the sum over its terms, if divided by `whole` this is the softmax times v.

        Args:
            whole: what the sum of the product is to be divided by: a sum of the same powers, in any shape.
        """
        total, e = self.powers.total_in(whole), self._e
        moves = self.powers.moves
        if total is not None and moves:
            return None
        if total is None:
            if not moves or len(moves) < len(self.powers.steps) or any(step.writes for step in moves):
                return None
            total = Powers(self.powers.exponents).total_in(whole)
            e = self.powers.exponents.value.exp()
        if total is None or (not moves and e._version != self._version):
            return None
        e = e.detach()
        with torch.no_grad():
            sums: Total | None = total
            summed = total(e)
            if _broadcast(summed.shape, e.shape) != e.shape or moves:
                sums = Grouped.of(total, e)
            if sums is None or not sums.in_groups(e):
                return None
            s = e / sums(e)
        return (s, sums) if self._is_over(s, total, e) else None

    def rerun(self, s: Tensor, run: Run) -> Tensor:
        """Return the product of the softmax s and v, moved and summed as the product of the powers was."""
        for step in self.powers.moves:
            args, kwargs = step.filled(s)
            s = run(step.function, tuple(args), kwargs)
        product: Tensor = run(self.function, *self._given(s))
        for step in self.steps:
            args, kwargs = step.filled(product)
            product = run(step.function, tuple(args), kwargs)
        return product

    def _given(self, s: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the product, with s in the place of the powers."""

        def swapped(x: Tensor) -> Tensor:
            return s if x is self._e else x

        return map_tensors(swapped, self._args), map_tensors(swapped, self._kwargs)

    def _is_over(self, s: Tensor, total: Total, e: Tensor) -> bool:
        """Return whether the product of s, the powers over their total, is that of the powers over the total."""
        first = self._op.traits.layer is LayerKind.MATRIX_PRODUCT and self._args[0] is self._e
        if first and not self.steps and not self.powers.moves and total.is_along(-1, s):
            return True

        def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return function(*map_tensors(torch.Tensor.detach, args), **map_tensors(torch.Tensor.detach, kwargs))

        with torch.no_grad(), modes_off():
            try:
                product, quotient = self.rerun(s, run), self.rerun(e, run) / total(e)
            except (RuntimeError, TypeError, IndexError):
                return False
            tolerance = torch.finfo(product.dtype).eps ** 0.5
            return product.shape == quotient.shape and bool(
                torch.isclose(product, quotient, tolerance, tolerance, equal_nan=True).all()
            )


def _broadcast(one: torch.Size, other: torch.Size) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(one, other)
    except RuntimeError:
        return None
