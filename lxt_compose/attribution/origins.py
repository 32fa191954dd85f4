"""Origins of the elements of integer tensors: each tensor that comes from an input has a tensor of origins.

The origin of an element is the number of an element of the inputs, counted from 1; 0 stands for a constant, ``UNKNOWN``
for several elements together. Origins are kept by memory, so views share them and writing into a view is seen in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..autograd.sharded import local
from ..autograd.trees import map_tensors, tensors_in
from ..ops import Argument, Effect, Integers
from ..torch_internals import storage_of

UNKNOWN, CHOSEN = -1, -2


class Origins:
    """The origins of all integer tensors that come from some inputs, for the time of one forward and backward pass.

    Those of floating point tensors too, if they are followed: a model may round them and use the results for look-ups.
    """

    def __init__(self, *, floats: bool = False) -> None:
        self.floats = floats
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._indicators: set[int] = set()

    def put(self, x: Tensor, origins: Tensor, *, indicator: bool = False) -> None:
        """Note where the elements of a tensor came from.

        Args:
            x: the tensor.
            origins: of its shape, of that of its first dimensions, or one that broadcasts to it.
            indicator: whether it says where an integer is among others, as one-hot rows do.
        """
        rows = origins.dim() and origins.dim() < x.dim()
        self.inside(x).copy_(origins.reshape(*origins.shape, *[1] * (x.dim() - origins.dim())) if rows else origins)
        if indicator:
            self._indicators.add(storage_of(x))

    def inside(self, x: Tensor) -> Tensor:
        """Return the origins of a tensor, to be changed in place; an unknown tensor is a constant."""
        x = local(x)
        memory = storage_of(x)
        if memory not in self._kept:
            count = x.untyped_storage().nbytes() // x.element_size()
            self._kept[memory] = x, torch.zeros(count, dtype=torch.long, device=x.device)
        return self._kept[memory][1].as_strided(x.size(), x.stride(), x.storage_offset())

    def of(self, x: Tensor) -> Tensor:
        """Return the origins of a tensor: int64, of its shape."""
        x = local(x)
        kept = self._kept.get(storage_of(x))
        if kept is None:
            nobody = UNKNOWN if self.floats and x.requires_grad else 0
            return torch.full((), nobody, dtype=torch.long, device=x.device).expand(x.shape)
        if kept[0].element_size() != x.element_size():
            return torch.full(x.shape, UNKNOWN, device=x.device)
        return kept[1].as_strided(x.size(), x.stride(), x.storage_offset())

    def knows(self, x: Any) -> bool:
        """Return whether a value is a tensor that comes from an input, or shares memory with one that does."""
        return (
            isinstance(x, Tensor) and (self.floats or not x.is_floating_point()) and storage_of(local(x)) in self._kept
        )

    def is_indicator(self, x: Tensor) -> bool:
        """Return whether it says where an integer is among others."""
        return storage_of(local(x)) in self._indicators

    def among(self, tree: Any) -> list[Tensor]:
        """Return the tensors among some arguments that come from an input."""
        return [x for x in tensors_in(tree) if self.knows(x)] if self._kept else []


def after(
    known: Integers, func: Callable[..., Any], args: Any, kwargs: Any, output: Any, from_: Origins
) -> Sequence[Tensor | None] | None:
    """Return the origins of a function's outputs, one for each tensor, in order.

    None if unknown.

    Args:
        known: what the function does with integers.
        func: the function.
        args: its arguments.
        kwargs: its keyword arguments.
        output: what it put out.
        from_: the origins of the arguments.
    """
    made = next(tensors_in(output))
    if known.effect is Effect.MOVES:
        return _moved(known, func, args, kwargs, made, from_)
    x = Argument(0, "input").of(args, kwargs)
    if known.effect is Effect.SORTS and isinstance(x, Tensor) and x.dim():
        dim = kwargs.get("dim", next((i for i in args[2:] if not isinstance(i, bool)), -1))
        return [from_.of(x).gather(dim, output[1]), torch.zeros_like(output[1])]
    if known.effect is Effect.CHOOSES:
        if len(list(tensors_in((args, kwargs)))) > 1:
            return [_at_place(func, (args, kwargs), made.shape, from_)]
        values, *places = tensors_in(output)
        return [torch.full_like(values, CHOSEN, dtype=torch.long), *map(torch.zeros_like, places)]
    if known.effect is Effect.CONVERTS:
        fitting = isinstance(x, Tensor) and x.shape == made.shape
        return [from_.of(x).to(made.device)] if fitting else None
    if known.effect in (Effect.AT_PLACE, Effect.ROUNDS):
        return [_at_place(func, (args, kwargs), made.shape, from_)]
    if known.effect is Effect.ONE_HOT:
        return [from_.of(x if args else kwargs["tensor"])[..., None].expand(made.shape)]
    if known.effect is Effect.LOOKS_UP:
        return [from_.of(ids) for ids in from_.among((args, kwargs))[:1]]
    if known.effect is Effect.EQUALS:
        return _one_hot_by_hand([*tensors_in((args, kwargs))], made, from_)
    return None


def combined(origins: Iterable[Tensor]) -> Tensor:
    """Return the origins of elements that were made of others; constants count for nothing, several give unknown."""
    first, *others = origins
    for other in others:
        either = torch.maximum(first, other)
        both = (first > 0) & (other > 0) & (first != other)
        first = torch.where(both | (torch.minimum(first, other) < 0), UNKNOWN, either)
    return first


def _at_place(func: Callable[..., Any], arguments: Any, shape: torch.Size, from_: Origins) -> Tensor:
    """Return the origins after elementwise operations; elements multiplied by 0 are constants."""
    tensors = list(tensors_in(arguments))
    known = [x for x in tensors if from_.knows(x) or (from_.floats and x.requires_grad)]
    origins = combined(from_.of(x).expand(shape) for x in known)
    if str(getattr(func, "__name__", "")).strip("_") in ("mul", "rmul", "imul", "multiply"):
        for factor in (*tensors, *(x for x in arguments[0] if isinstance(x, Real))):
            if not from_.knows(factor):
                origins = torch.where(torch.as_tensor(factor, device=origins.device) == 0, 0, origins)
    return origins


def _one_hot_by_hand(operands: list[Tensor], made: Tensor, from_: Origins) -> list[Tensor] | None:
    """Return the origins of ``ids[..., None] == torch.arange(n)``; other comparisons of numbers make constants."""
    if len(operands) != 2 or sum(map(from_.knows, operands)) != 1:
        return None
    x, other = operands if from_.knows(operands[0]) else operands[::-1]
    n = other.numel()
    along = [dim for dim in range(1, other.dim() + 1) if other.shape[-dim] == n]
    if n < 2 or not along or (x.dim() >= along[0] and x.shape[-along[0]] != 1):
        return None
    return [from_.of(x).expand(made.shape)] if other.flatten().tolist() == list(range(n)) else None


# ---- operations that move elements -----------------------------------------------------------------------------------


def values_in(known: Integers, args: Any, kwargs: Any) -> list[Any]:
    """Return the arguments whose elements are moved."""
    found = [args[place] for place in {argument.position for argument in known.values} if place < len(args)]
    return found + [kwargs[name] for name in _keywords(known) if name in kwargs]


def _keywords(known: Integers) -> set[str]:
    return {"input", "self", "tensor", *(argument.keyword for argument in known.values)}


def index_in(known: Integers, args: Any, kwargs: Any, from_: Origins) -> list[Tensor]:
    """Return the tensors in the argument that says where to read or write, if they come from an input."""
    if known.effect is Effect.LOOKS_UP:  # torch.embedding and F.embedding take their arguments in different orders
        return from_.among((args, kwargs))
    return [] if known.index is None else from_.among(known.index.of(args, kwargs))


def _moved(
    known: Integers, func: Callable[..., Any], args: Any, kwargs: Any, made: Tensor, from_: Origins
) -> Sequence[Tensor | None] | None:
    values, index = from_.among(values_in(known, args, kwargs)), index_in(known, args, kwargs, from_)
    if index:
        if values:
            return None
        return [written(known, args, kwargs, from_) if known.writes else _read(known, args, kwargs, made, from_)]
    masks = [x for x in from_.among((args, kwargs)) if x.dtype == torch.bool != made.dtype]
    if masks:  # of one-hot rows
        return [combined(from_.of(x).expand(made.shape) for x in masks)] if len(masks) == len(values) else None
    if not values:  # the input gave the shape alone
        return [from_.of(made)]
    return list(tensors_in(on_origins(known, func, args, kwargs, from_)))


def on_origins(
    known: Integers,
    func: Callable[..., Any],
    args: Any,
    kwargs: Any,
    from_: Origins,
    exchange: Mapping[int, Tensor] = MappingProxyType({}),
) -> Any:
    """Run an operation that moves elements on their origins; where it writes, the origins are changed in place.

    Args:
        known: what the operation does with integers.
        func: the function.
        args: its arguments.
        kwargs: its keyword arguments.
        from_: the origins of the arguments.
        exchange: other origins of some of them, by identity.
    """

    def exchanged(x: Tensor) -> Tensor:
        is_mask = x.dtype == torch.bool and not from_.knows(x)
        return exchange[id(x)] if id(x) in exchange else x if is_mask else from_.of(x)

    def of(value: Any) -> Any:
        return 0 if isinstance(value, (bool, int, float)) else map_tensors(exchanged, value)

    places, names = {argument.position for argument in known.values}, _keywords(known)
    moved = [of(value) if place in places else value for place, value in enumerate(args)]
    return func(*moved, **{name: of(value) if name in names else value for name, value in kwargs.items()})


def _read(known: Integers, args: Any, kwargs: Any, made: Tensor, from_: Origins) -> Tensor | None:
    """Return the origins of rows or elements that were read at integers which come from an input."""
    assert known.index is not None
    table, index = args[0] if args else kwargs["input"], known.index.of(args, kwargs)
    if isinstance(index, tuple):
        return combined(_read_at(table, index, place, made, from_) for place, x in enumerate(index) if from_.knows(x))
    if not isinstance(index, Tensor):
        return None
    origins = from_.of(index)
    if made.shape[: origins.dim()] == origins.shape and (known.index.position == 1 or origins.dim() == made.dim()):
        return origins  # the features of rows are behind
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    if isinstance(dim, int) and known.index.position == 2 and origins.dim() <= 1:
        sizes = [1] * made.dim()
        sizes[dim] = -1
        return origins.reshape(sizes).expand(made.shape)
    return origins.expand(made.shape) if origins.dim() == made.dim() else None


def _read_at(table: Tensor, index: tuple[Any, ...], place: int, made: Tensor, from_: Origins) -> Tensor:
    """Return the origins of ``table[..., ids, :]``, read in the same way from a table of the ids' numbers."""
    used = [0 if i is None else i.dim() if isinstance(i, Tensor) and i.dtype == torch.bool else 1 for i in index]
    used = [table.dim() - sum(used) + 1 if i is Ellipsis else n for i, n in zip(index, used, strict=True)]
    dim, ids = sum(used[:place]), index[place]
    numbers = torch.arange(ids.numel(), device=ids.device)
    sizes = [1] * table.dim()
    sizes[dim] = -1
    whole = [len(numbers) if d == dim else size for d, size in enumerate(table.shape)]
    inside = (*index[:place], numbers.reshape(ids.shape), *index[place + 1 :])
    read = numbers.reshape(sizes).expand(whole)[inside]
    return from_.of(ids).flatten()[read].expand(made.shape)


def written(known: Integers, args: Any, kwargs: Any, from_: Origins) -> Tensor | None:
    """Return the origins where constants were written at integers that come from an input: those of the integers."""
    assert known.index is not None
    x, index = args[0] if args else kwargs["input"], known.index.of(args, kwargs)
    origins = from_.of(x).clone()
    if known.index == Argument(2, "index"):
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if "reduce" in kwargs or not isinstance(index, Tensor) or not isinstance(dim, int) or index.dim() != x.dim():
            return None
        return origins.scatter_(dim, index.long(), from_.of(index))
    whose = from_.among(index)
    if len(whose) != 1:
        return None
    origins[index] = from_.of(whose[0])
    return origins
