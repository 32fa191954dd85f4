"""The inputs of a graph: the tensors among arguments and targets, and the structure that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
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


def ordered(arguments: Any, model: Any, names: Sequence[str]) -> Any:
    """Return arguments with those given by name in the order of others, where order means nothing to the model."""
    args, kwargs = arguments
    if list(kwargs) == list(names) or kwargs.keys() != set(names):
        return arguments
    declared = signature(model.forward).parameters
    if any(name not in declared for name in names):  # they come as a dictionary, whose order the model may use
        return arguments
    return args, {name: kwargs[name] for name in names}


def difference_of_calls(found: Any, expected: Any) -> str:
    """Return in words the first place where the structures of two calls differ: of arguments by place, and by name."""
    place = 1 if found[1] != expected[1] else 2
    return difference_of(found[place], expected[place], "the arguments" if place == 1 else "")


def difference_of(found: Any, expected: Any, place: str = "") -> str:
    """Return in words the first place where two structures differ.

    Args:
        found: the structure that was given.
        expected: that of the example.
        place: the name of what both stand for.
    """
    kind = found[0] if found[:1] == expected[:1] else ""
    if kind == "dict":
        pairs = dict(found[1:]), dict(expected[1:])
        missing, more = [[repr(name) for name in one if name not in other] for one, other in (pairs[::-1], pairs)]
        if missing or more:
            said = [f"{', '.join(names)} {word}" for names, word in ((missing, "missing"), (more, "more")) if names]
            return f"{_called(place)} {' and '.join(said)}"
        name = next(name for name in pairs[0] if pairs[0][name] != pairs[1][name])
        return difference_of(pairs[0][name], pairs[1][name], f"{place}.{name}" if place else str(name))
    if kind in ("tuple", "list") and len(found) == len(expected):
        number = next(number for number in range(1, len(found)) if found[number] != expected[number])
        return difference_of(found[number], expected[number], f"{place}[{number - 1}]")
    return f"{_called(place)} {_shown(found)} instead of {_shown(expected)}"


def _called(place: str) -> str:
    return f"{place}:" if place else "named arguments:"


def _shown(structure: Any) -> str:
    kind, *inside = structure
    if kind == "tensor":
        dtype, device, dims = inside
        return f"a tensor of {dtype} on {device} with {dims} dimensions"
    if kind in ("tuple", "list"):
        return f"a {kind} of {len(inside)}"
    return "a dict" if kind == "dict" else str(inside[0])


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
