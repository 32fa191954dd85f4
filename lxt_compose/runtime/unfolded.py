"""Operations that are taken apart where a function of one tensor goes into them that is not 0 where that tensor is.

``exp(x).norm()`` is the root of a sum of ``exp(2 x)``, and a bias keeps its share of each term as what it is there:
a function of x. ``c / (1 + exp(-x))`` with several elements of c is c times a sigmoid. Written out, both are chains
(`chains.py`), and get the relevance that they get where a model writes them out itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from ..autograd.trees import map_tensors, plain
from ..ops import Elements, Family, Op
from ..rules import OpCall
from ..torch_internals import checkpoint_hook, in_transform, modes_off
from .chains import chain_of, mark_of
from .decisions import Action, Decision
from .policy import FunctionInfo

Steps = Callable[..., Tensor]


def unfolded(made: Decision, call: OpCall) -> Decision:
    """Return the decision about a call; one to take it apart, where its default rule would see functions of a tensor.

    Args:
        made: what was decided.
        call: the call, before it runs.
    """
    info = made.info
    if not info.unfolds or made.action is not Action.RULE or made.key is not None or made.served:
        return made
    steps = _steps_of(info, call.args, call.kwargs, call.carriers)
    return made if steps is None else replace(made, action=Action.STEPS, info=replace(info, steps=steps))


def _steps_of(
    info: FunctionInfo, args: Sequence[Any], kwargs: dict[str, Any], carriers: Sequence[Tensor]
) -> Steps | None:
    """Return what a call is taken apart into; None where it is not."""
    op = info.op
    if op is None or any(x.is_complex() or x.layout is not torch.strided for x in carriers) or in_transform():
        return None
    if op.family is Family.DIVISION:
        return _quotient(op, args, carriers) if len(args) == 2 and not kwargs else None
    if op.family is not Family.HOMOGENEOUS or not any(chain_of(x, checkpoint_hook()).at_zero for x in carriers):
        return None
    if op.traits.elements is Elements.BROADCAST:
        steps: Steps | None = _hypotenuse
    elif len(carriers) > 1:
        steps = _distance
    else:
        steps = None if op.traits.order is None else _length(op.traits.order.of(args, kwargs))
    return steps if steps is not None and _is_same(info.function, steps, args, kwargs) else None


def _quotient(op: Op, args: Sequence[Any], carriers: Sequence[Tensor]) -> Steps | None:
    """Return a constant of several elements times one over a function of a tensor."""
    place = next((place for place in op.held if isinstance(place, int)), None)
    if place is None or len(carriers) != 1 or args[place] is not carriers[0]:
        return None
    chain, dividend = mark_of(carriers[0]), args[1 - place]
    if chain is None or not isinstance(dividend, Tensor) or dividend.numel() == 1 or not chain.at_zero:
        return None
    if chain.curve.is_affine or not chain.curve.is_finite:
        return None
    return lambda *given: given[1 - place] * given[place].reciprocal()


def _hypotenuse(a: Tensor, b: Tensor, **_: Any) -> Tensor:
    return (a.square() + b.square()).sqrt()


def _distance(a: Tensor, b: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """Return the p-norm of a difference along the last dimension."""
    return torch.linalg.vector_norm(a - b + eps, p, -1, keepdim)


def _length(order: Any) -> Steps | None:
    """Return a p-norm of all elements, or along dimensions."""
    order = plain(2.0 if order in (None, "fro") else order)
    if not isinstance(order, (int, float)) or not 0 < order < inf:
        return None

    def length(x: Tensor, *args: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
        dim, keepdim = args[1] if len(args) > 1 else dim, args[2] if len(args) > 2 else keepdim
        powers = x.square() if order == 2 else x.abs().pow(order)
        total = powers.sum() if dim is None and not keepdim else powers.sum(dim, keepdim=keepdim)
        return total.sqrt() if order == 2 else total.pow(1 / order)

    return length


def _is_same(function: Steps, steps: Steps, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return whether the steps give what the function gives: of matrices some norms are other ones."""
    with torch.no_grad(), modes_off():
        args, kwargs = map_tensors(Tensor.clone, (tuple(args), dict(kwargs)))  # the function may work in place
        try:
            other, value = steps(*args, **kwargs), function(*args, **kwargs)
        except (RuntimeError, TypeError, IndexError):
            return False
        if value.shape != other.shape or value.dtype != other.dtype:
            return False
        tolerance = torch.finfo(value.dtype).eps ** 0.5
        return torch.allclose(value, other, tolerance, tolerance)
