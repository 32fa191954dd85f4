"""Targets: the output that is explained, and the seed that relevance starts with."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.trees import map_tensors, tensors_in
from ..errors import NotFiniteError
from ..torch_internals.traces import is_traced, on_cpu
from .logits import per_class

OTHERS = "others"
HELP = (
    "target must be None (the arg-max), a class index, one index per sample (a list or an integer tensor), a pair "
    "(a, b) for a - b, a pair (a, 'others') for a less the mean of the others, a function of the model's output "
    "(lxt_compose.targets has those of heads that answer at many places), a list of several targets for a single "
    "sample, or a dictionary of several targets for every sample"
)


@dataclass(frozen=True)
class Goal:
    """A target, checked. ``first`` and ``second`` hold an index per sample; ``first=None`` is the arg-max."""

    first: Tensor | None = None
    second: Tensor | None = None
    others: bool = False
    function: Callable[[Any], Tensor] | None = None

    def part(self, samples: slice) -> Goal:
        """Return the target of some of the samples."""

        def cut(index: Tensor | None) -> Tensor | None:
            return None if index is None else index[samples]

        return Goal(cut(self.first), cut(self.second), self.others, self.function)

    @property
    def target(self) -> Any:
        """The target in the form that :func:`attribute` takes."""
        second = OTHERS if self.others else self.second
        return self.function or (self.first if second is None else (self.first, second))

    def rows(self, samples: Tensor) -> Goal:
        """Return the target of these samples, given by their numbers."""
        first, second = (None if index is None else index[samples] for index in (self.first, self.second))
        return Goal(first, second, self.others, self.function)


@dataclass(frozen=True)
class Chosen:
    """What is explained of one batch of n samples.

    ``value`` [n] is the number explained, ``target`` [n] the index, [n, 2] of a pair (-1: the mean of the others) or
    None. ``seeds`` pairs each output tensor that takes part with the slot that backward starts with there.
    """

    value: Tensor
    target: Tensor | None
    seeds: list[tuple[Tensor, Tensor]]
    classes: int | None = None
    """The number of classes, if what is explained is one."""


def read_target(target: Any, count: int) -> Goal:
    """Check a target for `count` samples.

    Raises:
        TypeError: it is of a wrong kind.
        ValueError: it is not one per sample.
    """
    if target is None:
        return Goal()
    if type(target).__module__ == "numpy" and getattr(target, "shape", None):
        target = torch.as_tensor(target)
    if isinstance(target, Tensor) and target.dim() == 2 and target.shape[1] == 2:
        return _contrast(target[:, 0], target[:, 1], count)
    if isinstance(target, list) and target and all(isinstance(pair, (tuple, list)) for pair in target):
        if any(len(pair) != 2 for pair in target):
            raise ValueError(f"pairs for a contrast hold two indices each, got {target!r}")
        left, right = zip(*target, strict=True)
        return _contrast(list(left), list(right), count)
    if isinstance(target, tuple):
        if len(target) != 2:
            raise ValueError(f"a pair for a contrast holds two indices, got {target!r}; {HELP}")
        if isinstance(target[1], str) and target[1] == OTHERS:
            return Goal(None if target[0] is None else _indices(target[0], count), others=True)
        return _contrast(target[0], target[1], count)
    if callable(target) and not isinstance(target, Tensor):
        return Goal(function=target)
    return Goal(_indices(target, count))


def _contrast(first: Any, second: Any, count: int) -> Goal:
    """Return the difference of two classes, the first of which may be the arg-max (None)."""
    left, right = None if first is None else _indices(first, count), _indices(second, count)
    if left is not None:
        _check_different(left, right)
    return Goal(left, right)


def _check_different(first: Tensor, second: Tensor) -> None:
    """Raise if a class is contrasted with itself in all samples, warn if it is in some.

    Raises:
        ValueError: nothing is left to explain.
    """
    same = (first.cpu() == second.cpu()).nonzero().flatten()
    if not same.numel():
        return
    sample = int(same[0])
    said = f"target: in sample {sample} class {int(second[sample])} is contrasted with itself"
    if same.numel() == len(second):
        raise ValueError(f"{said}, so there is nothing to explain; give another class, or 'others'")
    warnings.warn(f"{said}, as in {same.numel()} of {len(second)} samples: their relevance is 0", stacklevel=2)


def _indices(value: Any, count: int) -> Tensor:
    """Return one index per sample."""
    if hasattr(value, "__array__") and hasattr(value, "shape") and not isinstance(value, Tensor):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"a target must hold class indices, got a tensor of {value.dtype}; {HELP}")
        index = value.detach().cpu().long()
    elif isinstance(value, list):
        index = torch.tensor([_one_index(v) for v in value], dtype=torch.long)
    else:
        index = torch.tensor(_one_index(value))
    if index.dim() == 0:
        return index.expand(count)
    if index.shape != (count,):
        raise ValueError(f"the target has shape {list(index.shape)}, but there are {count} samples; {HELP}")
    return index


def _one_index(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"a target cannot be {value!r}; {HELP}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{value!r} of type {type(value).__name__} is no target; {HELP}") from None


def choose(
    goal: Goal,
    output: Any,
    model: nn.Module,
    *,
    count: int,
    mask: Tensor | None,
    times_output: bool,
    asked_at: Tensor | None = None,
    alone: bool = False,
) -> Chosen:
    """Pick what is explained from the model's output, and the slots at the outputs that relevance starts with.

    For the explained number y(outputs), each output o starts with ``dy/do`` in the gradient formulation and, if
    `times_output`, with ``o * dy/do`` in the relevance formulation. A logit so starts with its value, and a difference
    a - b with a at the one logit and -b at the other.

    Args:
        goal: the target.
        output: of the model.
        model: the model.
        count: the number of samples.
        mask: their real tokens.
        times_output: whether relevance starts with the value itself.
        asked_at: the mask tokens of a masked language model.
        alone: whether the inputs are one sample, without a dimension for it.

    Raises:
        TypeError: the output, or what a target function returned, holds no number that could be explained.
        ValueError: an index is out of range, or shapes do not fit.
        NotFiniteError: what is explained is not finite.
    """
    if goal.function is not None:
        return chosen_by(goal.function, output, count=count, times_output=times_output)
    sources: dict[int, Tensor] = {}
    for tensor in tensors_in(output):
        if tensor.is_floating_point() and tensor.requires_grad:
            sources.setdefault(id(tensor), tensor)
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in sources.items()}
    seen = map_tensors(lambda tensor: leaves.get(id(tensor), tensor), output)
    logits = per_class(seen, model, count, mask, asked_at, alone=alone)
    value, target = _picked(goal, logits)
    _check_finite(value)
    if value.requires_grad and not leaves:  # it comes from a part without carriers of ours
        raise TypeError(
            f"the tensors in the model's output of type {type(output).__name__} are not found, or not floating point "
            f"numbers; register_container({type(output).__name__}, vars) tells what is in it, or pass a target function"
        )
    slots: tuple[Tensor | None, ...] = ()
    if value.requires_grad:
        slots = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
    seeds = [
        (source, source.detach() * slot if times_output else slot)
        for source, slot in zip(sources.values(), slots, strict=False)
        if slot is not None
    ]
    return Chosen(value.detach(), target, seeds, logits.shape[1])


def _check_finite(value: Tensor) -> None:
    if not is_traced() and not torch.isfinite(value).all():
        raise NotFiniteError(f"what is to be explained is not finite: {value.detach().tolist()}")


def chosen_by(function: Callable[[Any], Tensor], output: Any, *, count: int, times_output: bool) -> Chosen:
    """Return the target function's value for the model's output, with which relevance starts.

    Raises:
        TypeError: it returned no floating point tensor.
        ValueError: it did not return one number per sample.
        NotFiniteError: what is explained is not finite.
    """
    value = called(function, output, count)
    _check_finite(value)
    start = value.detach() if times_output else torch.ones_like(value)
    return Chosen(value.detach(), None, [(value, start)] if value.requires_grad else [])


def called(function: Callable[[Any], Tensor], output: Any, count: int) -> Tensor:
    """Return the target function's value for the model's output, [count].

    Raises:
        TypeError: it returned no floating point tensor.
        ValueError: it did not return one number per sample.
    """
    value = function(output)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the target function must return a floating point tensor, one number per sample, got {kind}")
    if value.dim() == 0 and count == 1:
        return value.reshape(1)
    if value.shape != (count,):
        raise ValueError(
            f"the target function must return one number per sample, shape [{count}], got {list(value.shape)}"
        )
    return value


def check_range(index: Tensor, classes: int) -> None:
    """Raise if an index stands for no class.

    Raises:
        ValueError: it is out of range.
    """
    if is_traced():
        return
    bad = index[(index < 0) | (index >= classes)]
    if bad.numel():
        raise ValueError(f"target {int(bad[0])} is out of range: the model has {classes} outputs, 0 to {classes - 1}")


def _picked(goal: Goal, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number explained, and the indices that it belongs to; logits are [n, classes]."""
    classes = logits.shape[1]

    def logit(index: Tensor) -> Tensor:
        check_range(index, classes)
        return logits.gather(1, index.to(logits.device)[:, None])[:, 0]

    if goal.first is None and not is_traced() and logits.detach().isnan().any():
        raise NotFiniteError("the outputs hold NaN, so there is no arg-max")
    first = on_cpu(logits.detach().argmax(1)) if goal.first is None else goal.first
    value = logit(first)
    if goal.others:
        if classes < 2:
            raise ValueError("the model has one output only, so there are no others to compare it with")
        second = torch.full_like(first, -1)
        return value - (logits.sum(1) - value) / (classes - 1), torch.stack([first, second], 1)
    if goal.second is not None:
        if goal.first is None and not is_traced():
            _check_different(first, goal.second)
        return value - logit(goal.second), torch.stack([first, goal.second], 1)
    return value, first
