"""The inputs of a graph: the tensors among arguments and targets, and the structure that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any
from weakref import WeakMethod, ref

from torch import Tensor

from ..autograd.trees import PLAIN, map_tensors, tensors_in
from ..errors import TraceError
from .goals import Goals
from .inputs import Inputs
from .targets import Goal


def tensors_of(given: Inputs, goals: Goals) -> list[Tensor]:
    """Return the tensors that a graph is called with: those among the arguments, and the indices of the targets."""
    return [*tensors_in((given.args, given.kwargs)), *indices_of(goals)]


def indices_of(goals: Goals) -> list[Tensor]:
    """Return the indices of the targets."""
    return [index for goal in goals.each for index in (goal.first, goal.second) if index is not None]


def kinds_of(goals: Goals) -> tuple[Any, ...]:
    """Return the part of the targets that a graph depends on; indices are inputs of the graph, and names are not."""
    return tuple(
        (goal.first is None, goal.second is None, goal.others, _identity(goal.function)) for goal in goals.each
    )


def _identity(function: Any) -> Any:
    """Return what stands for a function while it lives; methods are made anew each time that they are asked for."""
    if isinstance(function, MethodType):
        return id(function.__self__), id(function.__func__)
    return None if function is None else id(function)


def functions_of(goals: Goals) -> list[Callable[[], Any]]:
    """Return weak references to the functions among the targets."""
    return [_reference(goal.function) for goal in goals.each if goal.function is not None]


def _reference(function: Any) -> Callable[[], Any]:
    try:
        return WeakMethod(function) if isinstance(function, MethodType) else ref(function)
    except TypeError:  # of a class without weak references
        return lambda: function


def structure_of(tree: Any) -> tuple[Any, ...]:
    """Return the part of arguments that a graph depends on: their nesting, and everything that is no tensor.

    Raises:
        TraceError: there is an object that the model may change, such as a cache.
    """
    if isinstance(tree, Tensor):
        return ("tensor", tree.dtype, str(tree.device), tree.dim())
    if isinstance(tree, (tuple, list)):
        return (type(tree).__name__, *map(structure_of, tree))
    if isinstance(tree, dict):
        return ("dict", *((key, structure_of(value)) for key, value in tree.items()))
    if type(tree) in PLAIN:
        return (type(tree).__name__, tree)
    raise TraceError(
        f"an argument of type {type(tree).__name__} may be changed by the model, so there is no graph for it; leave "
        f"caches out, and give tensors in tuples, lists and dictionaries"
    )


def difference(found: Any, expected: Any) -> str:
    """Return in words the first place where two structures differ."""
    if isinstance(found, tuple) and isinstance(expected, tuple) and len(found) == len(expected):
        pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a != b]
        nested = [pair for pair in pairs if isinstance(pair[0], tuple)]
        if found[:1] == expected[:1] and len(pairs) == len(nested):
            return difference(*nested[0])
    return f"{_shown(found)} instead of {_shown(expected)}"


def _shown(structure: Any) -> str:
    if isinstance(structure, tuple) and structure[:1] == ("tensor",):
        _, dtype, device, dims = structure
        return f"a tensor of {dtype} on {device} with {dims} dimensions"
    return str(structure)


def exchanged(given: Inputs, goals: Goals, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Inputs, Goals]:
    """Return the same inputs and targets with other tensors in the places of those of an example."""
    count = len(tensors) - len(indices_of(goals))
    new = {id(old): value for old, value in zip(tensors[:count], values[:count], strict=True)}
    indices = iter(values[count:])

    def other(x: Tensor) -> Tensor:
        return new.get(id(x), x)

    def of(table: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: other(x) for name, x in table.items()}

    each = tuple(
        Goal(
            None if goal.first is None else next(indices),
            None if goal.second is None else next(indices),
            goal.others,
            goal.function,
        )
        for goal in goals.each
    )
    inputs = replace(
        given,
        args=map_tensors(other, given.args),
        kwargs=map_tensors(other, given.kwargs),
        carriers=of(given.carriers),
        ids=of(given.ids),
        beside=of(given.beside),
        mask=None if given.mask is None else other(given.mask),
        encoder_mask=None if given.encoder_mask is None else other(given.encoder_mask),
        count=_count(given, of({**given.ids, **given.carriers})),
    )
    return inputs, replace(goals, each=each)


def _count(given: Inputs, tensors: dict[str, Tensor]) -> int:
    """Return the number of samples: the batch of the first input that has one."""
    for name, x in tensors.items():
        place = given.batch_of(given.all[name])
        if place is not None:
            return x.shape[place]
    return given.count
