"""Drop-ins: functions with a rule of their own, which run alone or inside a registered model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from ..autograd.functions import Slots, bypass
from ..autograd.numerics import DefaultEpsilon, Stabilizing, componentwise, over_stabilized
from ..autograd.trees import map_tensors, tensors_in
from ..ops import op_named, op_of
from ..rules.base import RELEVANCE, Call, Rule, exchange, find_carriers, only_output
from ..rules.epsilon import Epsilon
from ..rules.norm import Norm

SMALL = DefaultEpsilon(1e-8)
"""The default of LXT where two tensors are added or multiplied."""
_ANYTHING = (None,)
"""An argument whose class overrides no functions, so that only a function mode handles the call."""


def under(rule: Rule, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run ``function(*args, **kwargs)`` under a rule, such that the gradient of each carrier is its relevance.

    A function mode sees the call as one function, like those of torch. So in a registered model it is an operation with
    a given rule, which is applied in the formulation of the composite.

    Args:
        rule: how relevance passes.
        name: the name of the drop-in, for reports and errors.
        function: the function, which does not change its arguments in place.
        args: arguments of the function.
        kwargs: arguments of the function by keyword.
    """
    if op_of(function) is None and not find_carriers(args, kwargs):
        return map_tensors(Tensor.detach, function(*args, **kwargs))  # parameters of the function itself are constants
    if has_torch_function(_ANYTHING):
        return handle_torch_function(under, _ANYTHING, rule, name, function, *args, **kwargs)
    return _run(rule, RELEVANCE, name, function, args, kwargs)


def _run(
    rule: Rule, formulation: str, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    op, module = op_of(function), function if isinstance(function, nn.Module) else None
    call = Call(formulation, f"{name}()", args, kwargs, op, module, function, find_carriers(args, kwargs))
    if not torch.is_grad_enabled() or not call.carriers or rule.idle(call):
        return function(*args, **kwargs)
    call.values, call.versions = list(call.carriers), [x._version for x in call.carriers]
    call.inputs = [rule.enter(call, place) for place in range(len(call.carriers))]
    args, kwargs = exchange(call)
    if op is not None:
        output = function(*args, **kwargs)
    else:
        with DropIns(None):
            output = function(*args, **kwargs)
    outputs = {id(z): z for z in tensors_in(output) if z.is_floating_point() or z.is_complex()}
    left = dict(zip(outputs, rule.leave(call, list(outputs.values())), strict=True))
    return map_tensors(lambda z: left.get(id(z), z), output)


class DropIns(TorchFunctionMode):
    """Run the drop-ins in this context in another formulation, or as the plain functions that they compute.

    Args:
        formulation: that of the slots; None where a rule takes everything in the context as one function, and needs its
            gradient.
    """

    def __init__(self, formulation: str | None) -> None:
        super().__init__()
        self.formulation = formulation

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function."""
        kwargs = kwargs or {}
        if func is not under:
            return func(*args, **kwargs)
        rule, name, function, *given = args
        if self.formulation is not None:
            return _run(rule, self.formulation, name, function, tuple(given), kwargs)
        with self:
            return function(*given, **kwargs)


def in_formulation(formulation: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, with slots of this formulation for the drop-ins that it calls."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with DropIns(formulation):
            return function(*args, **kwargs)

    return run


@dataclass(frozen=True)
class BlockEpsilon(Epsilon):
    """:class:`Epsilon` for a function as a whole; its own tensors, such as parameters, are constants.

    ``R_x = x * J^T (R / (z + epsilon * sign(z)))`` for each carrier x; several outputs z add up.

    Source: Bach et al. 2015, eq. 58; for whole blocks: Achtibat et al. 2024 (AttnLRP), eq. 5.
    """

    def idle(self, call: Call) -> bool:
        """See :meth:`Rule.idle`."""
        return False

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        return call.carriers[place].detach().requires_grad_()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        inputs, relevance = list(call.inputs), call.relevance
        return [
            bypass(partial(_through_block, z, inputs, self.epsilon, relevance), z, (), call.carriers)
            if z.requires_grad
            else z
            for z in outputs
        ]


def _through_block(z: Tensor, inputs: list[Tensor], epsilon: Stabilizing, relevance: bool, slot: Tensor) -> Slots:
    slot = slot if relevance else componentwise(torch.mul, slot, z.detach())
    found = torch.autograd.grad(
        z, inputs, over_stabilized(slot, z.detach(), epsilon), retain_graph=True, allow_unused=True
    )
    pairs = zip(found, inputs, strict=True)
    return tuple(g if g is None or not relevance else componentwise(torch.mul, g, x.detach()) for g, x in pairs)


@dataclass(frozen=True)
class NormIdentity(Rule):
    """A normalization ``z = x / statistic * w`` that relevance passes unchanged: ``R_x = R_z``.

    With the statistic held constant each output comes from one input. In the gradient formulation
    ``g_x = g_z * w / statistic``.

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.4.
    """

    def enter(self, call: Call, place: int) -> Tensor:
        """See :meth:`Rule.enter`."""
        return call.carriers[place].detach()

    def leave(self, call: Call, outputs: list[Tensor]) -> list[Tensor]:
        """See :meth:`Rule.leave`."""
        if call.relevance:
            return [bypass(_unchanged, only_output(self, call, outputs), (), call.carriers)]
        call.op = call.op or op_named("rms_norm")
        return Norm().leave(call, outputs)


def _unchanged(slot: Tensor) -> Slots:
    return (slot,)


def constant(weight: Tensor | None) -> Tensor | None:
    """Return a weight or bias without its graph."""
    return None if weight is None else weight.detach()


def norm_shape(x: Tensor, weight: Tensor | None, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape that a norm is over: the given one, else that of its weight, else the last dimension's."""
    if given is not None:
        return tuple(given)
    return tuple(x.shape[-1:] if weight is None else weight.shape)


def rms_norm(x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float) -> Tensor:
    """Return ``F.rms_norm``, but rounded to the dtype of x before it is multiplied by the weight."""
    dims = tuple(range(-len(normalized_shape), 0))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    z = (wide * (wide.square().mean(dims, keepdim=True) + eps).rsqrt()).to(x.dtype)
    return z if weight is None else weight * z


def versions_of(given: Any) -> list[int]:
    """Return how often each tensor was changed in place."""
    return [tensor._version for tensor in tensors_in(given)]


def check_unchanged(fn: Callable[..., Any], given: Any, versions: list[int]) -> None:
    """Raise if a tensor was changed in place since its version was taken.

    Raises:
        RuntimeError: one was.
    """
    if versions != versions_of(given):
        raise RuntimeError(f"{fn!r} changes its input in place; give it a copy: x.clone()")
