"""Taylor decomposition of any differentiable operation or module, at a reference point of one's choice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..autograd.functions import Slots, bypass
from ..autograd.numerics import EPSILON, Stabilizing, check_epsilon, check_number, over_stabilized, stabilize
from ..autograd.trees import map_tensors
from ..errors import RuleError
from ..torch_internals import modes_off
from .absorption import BIAS, HIGHER_ORDERS, STABILIZER, kind_of_constant, linear_part
from .base import GRADIENT, Amount, Call, Rule, only_output
from .linear_layers.trial import without_effect
from .spelling import QUIET

Reference = float | Tensor | Callable[[Tensor], Tensor] | None
Distribution = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class TaylorDecomposition(Rule):
    """First-order Taylor decomposition of any function, ``f_j(x) = sum_i J_ji(x~) x_i + b_j``, at a reference point x~.

    ``R_i = x_i * sum_j J_ji(x~) R_j / f_j(x)``, with f_j(x) stabilized. What is left, the higher orders and
    ``b_j = f_j(x~) - sum_i J_ji(x~) x~_i``, is absorbed; or the part of b_j, ``b_j R_j / f_j(x)``, is distributed. The
    function runs once more, at the reference point.

    Args:
        reference: x~: a number, a tensor that broadcasts to the inputs, a function of each input, or None for the input
            itself (then it is :class:`Epsilon`); or a tuple or list of these, one for each carrier.
        bias: False: what the bias explains is absorbed. True: it is shared evenly by all elements of the inputs of the
            same sample (same place in the first dimension). A function of that relevance, in the shape of the output,
            and of the tuple of inputs: what it returns is added to the relevance of the inputs, one tensor for each.
            Unless it is False, the rule needs the relevance formulation, since inputs of 0 may get relevance.
        epsilon: stabilizer of f_j(x), >= 0, signed; or a function such as :class:`Stabilizer`.

    Raises:
        ValueError: a number is not finite, or epsilon is negative.
        RuleError: there are several outputs, or (bias=True) inputs and output differ in their first dimension, or there
            are not as many references as inputs.

    Source: Achtibat et al. 2024 (AttnLRP), equations 4 and 5; Montavon et al. 2017.
    """

    reference: Reference | Sequence[Reference] = 0.0
    bias: bool | Distribution = False
    epsilon: Stabilizing = field(default=EPSILON, metadata=QUIET)

    def __post_init__(self) -> None:
        for point in self._each():
            if not (point is None or isinstance(point, Tensor) or callable(point)):
                check_number("reference", point)
        if not (isinstance(self.bias, bool) or callable(self.bias)):
            raise TypeError(f"bias must be True, False or a function, got {self.bias!r}")
        check_epsilon(self.epsilon)

    def check_formulation(self, formulation: str) -> None:
        """See :meth:`Rule.check_formulation`."""
        if formulation == GRADIENT and self.bias is not False:
            raise RuleError(f"{self} needs formulation='relevance': what the bias explains goes to inputs of 0 too")

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`; with the first carrier the operation is run at the reference point."""
        if place == 0:
            call.kept = self.at_reference(call)
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        z, (output, points) = only_output(self, call, outputs).detach(), call.kept
        if self.bias is True and any(x.shape[:1] != z.shape[:1] for x in call.values):
            raise RuleError(f"{self} shares sample by sample, but {call.where} has other numbers of inputs and outputs")
        bias = (output.detach() - linear_part(output, points, points),) if self.bias is not False else ()
        step = partial(self._back, call.relevance, output, points)
        return [bypass(step, z, (z, *call.values, *bias), call.carriers)]

    def absorbed(self, call: Call) -> dict[str, Amount]:
        """See :meth:`Rule.absorbed`: with ``s = R / f(x)``, s b unless it is distributed, and s (f(x) - J x - b)."""
        if call.rerun is None:
            return {}
        kinds = (BIAS, HIGHER_ORDERS, STABILIZER) if self.bias is False else (HIGHER_ORDERS, STABILIZER)
        return {kind: partial(self._amount, call, kind) for kind in kinds}

    def rest(self, call: Call) -> str:
        """See :meth:`Rule.rest`."""
        kind = kind_of_constant(call)
        return kind if kind == BIAS else HIGHER_ORDERS

    def _amount(self, call: Call, kind: str, slot: Tensor) -> Tensor:
        r, z = call.relevance_in(slot), call.z
        s = r / stabilize(z, self.epsilon)
        if kind == STABILIZER:
            return r - s * z
        with torch.enable_grad():
            output, points = self.at_reference(call)
        bias = output.detach() - linear_part(output, points, points)
        return s * (bias if kind == BIAS else z - linear_part(output, points, call.values) - bias)

    def at_reference(self, call: Call) -> tuple[Tensor, list[Tensor]]:
        """Return the operation's output at the reference point, the point itself, and the graph between them."""
        references, points = self._each(), list[Tensor]()
        if isinstance(self.reference, (tuple, list)) and len(references) != len(call.carriers):
            raise RuleError(
                f"{type(self).__name__} has {len(references)} references, but {call.where} has {len(call.carriers)} "
                f"inputs that carry relevance"
            )

        def moved(x: Tensor) -> Tensor:
            if not x.requires_grad:
                return x
            points.append(_point(references[len(points) % len(references)], x.detach()).requires_grad_())
            return points[-1].clone()  # an operation in place may not change a leaf

        args, kwargs = map_tensors(moved, (call.args, call.kwargs))
        function: Any = call.function if call.module is None else call.module.forward
        with torch.enable_grad(), modes_off(), without_effect(call.module):
            output = function(*args, **kwargs)
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise RuleError(f"{self} knows operations with one output, but {call.where} returns a {kind}")
        return output, points

    def _each(self) -> Sequence[Reference]:
        return self.reference if isinstance(self.reference, (tuple, list)) else (self.reference,)

    def _back(self, relevance: bool, output: Tensor, points: list[Tensor], slot: Tensor, *saved: Tensor) -> Slots:
        z, values, bias = saved[0], saved[1 : len(points) + 1], saved[len(points) + 1 :]
        s = over_stabilized(slot if relevance else slot * z, z, self.epsilon)
        found = _pulled(output, points, s) if output.requires_grad else [torch.zeros_like(x) for x in values]
        if not relevance:
            return tuple(found)
        slots = [x * gradient for x, gradient in zip(values, found, strict=True)]
        if bias:
            share = self.bias if callable(self.bias) else _evenly
            slots = [a + b for a, b in zip(slots, share(s * bias[0], values), strict=True)]
        return tuple(slots)


def _point(reference: Reference, x: Tensor) -> Tensor:
    if reference is None:
        return x.clone()
    if callable(reference) and not isinstance(reference, Tensor):
        return reference(x).detach().clone()
    return torch.as_tensor(reference, dtype=x.dtype, device=x.device).expand(x.shape).clone()


def _pulled(output: Tensor, points: list[Tensor], slot: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(output, points, slot, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, points, strict=True)]


def _evenly(relevance: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the relevance of each sample, shared by all elements of that sample's inputs."""
    if not relevance.dim():
        return tuple((relevance / len(inputs)).expand(x.shape) for x in inputs)
    per_sample = relevance.flatten(1).sum(1) if relevance.dim() > 1 else relevance
    count = sum(x[0].numel() for x in inputs) if len(per_sample) else 1
    return tuple((per_sample / count).reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape) for x in inputs)
