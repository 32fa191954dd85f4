"""Dimensions of a graph's tensors that may be of any size."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from .axes import BATCH
from .inputs import Inputs


def names_of(
    given: Inputs, indices: Collection[Tensor], tensors: Sequence[Tensor], dynamic: Collection[str]
) -> tuple[tuple[str | None, ...], ...]:
    """Return for each tensor the names of those of its dimensions that may be of any size.

    Inputs have named dimensions; where two inputs differ in the size of one name (the tokens of encoder and decoder),
    it stands for two. Other tensors, such as masks, take the names of inputs with the same sizes at the same places;
    the indices of targets count samples.
    """
    known, first = dict[int, tuple[str | None, ...]](), dict[str, int]()
    for name, x in given.all.items():
        named = [(dim, first.setdefault(dim, size), size) for dim, size in zip(given.dims[name], x.shape, strict=True)]
        called = [dim if size == before else f"{dim} of {name}" for dim, before, size in named]
        known[id(x)] = tuple(own if dim in dynamic else None for own, (dim, *_) in zip(called, named, strict=True))
    patterns = [(x.shape, known[id(x)]) for x in given.all.values()]
    counting = {id(index) for index in indices}
    found = []
    for x in tensors:
        names = known.get(id(x))
        if id(x) in counting:
            names = (BATCH if BATCH in dynamic else None,)
        elif names is None:
            names = _like(x, patterns)
        found.append(names)
    return tuple(found)


def _like(x: Tensor, patterns: Sequence[tuple[torch.Size, tuple[str | None, ...]]]) -> tuple[str | None, ...]:
    names: list[str | None] = [None] * x.dim()
    sizes = {name: size for shape, dims in patterns for name, size in zip(dims, shape, strict=True) if name is not None}
    for place, size in enumerate(x.shape):
        same = [dims[place] for shape, dims in patterns if len(shape) > place and shape[place] == size]
        other = [name for name, length in sizes.items() if length == size and name != BATCH]
        names[place] = next((name for name in (*same, *(other if place else ())) if name is not None), None)
    return tuple(names)


def of_other_sizes(tensors: Sequence[Tensor], names: Sequence[tuple[str | None, ...]]) -> list[Tensor]:
    """Return tensors with other sizes for dimensions of other names, and no size 1, as a graph for any size needs.

    For a graph of one shape, return the tensors themselves.
    """
    named = [pair for x, dims in zip(tensors, names, strict=True) for pair in zip(x.shape, dims, strict=True)]
    fixed, sizes = {size for size, name in named if name is None}, dict[str, int]()
    for size, name in named:
        if name is not None and name not in sizes:
            taken = fixed | set(sizes.values()) | {0, 1}
            sizes[name] = next(other for other in range(size, size + len(taken) + 2) if other not in taken)
    if not sizes:
        return list(tensors)
    shapes = [
        [size if name is None else sizes[name] for size, name in zip(x.shape, dims, strict=True)]
        for x, dims in zip(tensors, names, strict=True)
    ]
    return [x.new_zeros(shape) for x, shape in zip(tensors, shapes, strict=True)]


def of_any_size(given: Inputs, dynamic: bool | Collection[str]) -> list[str]:
    """Return the dimensions that may be of any size.

    Raises:
        ValueError: the inputs have no such dimension.
    """
    known = list(dict.fromkeys(dim for dims in given.dims.values() for dim in dims))
    if isinstance(dynamic, bool):
        return [dim for dim in known if dynamic and dim in (BATCH, "token", "time", "node", "frame", "sequence")]
    wanted = [dynamic] if isinstance(dynamic, str) else list(dynamic)
    for name in wanted:
        if name not in known:
            raise ValueError(f"the inputs have no dimension {name!r} that could be dynamic, but {', '.join(known)}")
    return wanted
