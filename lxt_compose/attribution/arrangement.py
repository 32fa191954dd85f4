"""Where ids stand in what a model embeds: some models transpose, flatten or pad them before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product

import torch
from torch import Tensor

from ..errors import AttributionError

_MOST_PLACES = 4096
"""How many places for a block are tried."""


@dataclass(frozen=True)
class Arrangement:
    """How ids of the shape ``size`` became what was embedded: permuted, then cut to ``inside``, then put at ``place``.

    ``flat`` says that they have another shape, but the same order.
    """

    size: tuple[int, ...]
    order: tuple[int, ...]
    place: tuple[slice, ...]
    inside: tuple[slice, ...]
    flat: bool = False

    def of_ids(self, embedded: Tensor) -> Tensor:
        """What belongs to the ids, [*size, features]; padding that the model added is dropped.

        Args:
            embedded: of the shape of what was embedded, and features.
        """
        features = embedded.shape[-1]
        if self.flat:
            return embedded.reshape(*self.size, features)
        found = embedded[self.place]
        whole = [self.size[dim] for dim in self.order]
        if list(found.shape[:-1]) != whole:
            rest = embedded.new_zeros(*whole, features)
            rest[self.inside] = found
            found = rest
        return found.permute(*torch.argsort(torch.tensor(self.order)).tolist(), len(self.size))

    def put(self, embedded: Tensor, values: Tensor) -> Tensor:
        """A copy of the embedded in which what belongs to the ids has other values, [*size, features]."""
        if self.flat:
            return values.reshape(embedded.shape)
        changed = embedded.clone()
        changed[self.place] = values.permute(*self.order, len(self.size))[self.inside]
        return changed


def arrangement_of(
    embedded: Tensor, ids: Tensor, order: list[int | None] | None = None, *, exact: bool = False
) -> Arrangement | None:
    """How these ids became what was embedded, or None if that cannot be told from their values.

    Args:
        embedded: the ids that an embedding layer was run on.
        ids: the ids that the model was given.
        order: for each dimension of what was embedded the one of the ids, if it is known.
        exact: whether all of the ids must be there, with their values.
    """
    if embedded.dim() == ids.dim():
        orders = [tuple(order)] if order and None not in order else permutations(range(ids.dim()))
        for perm in orders:
            found = _block(embedded, ids.permute(perm), both=not exact)  # type: ignore[arg-type]
            if found is not None:
                return Arrangement(tuple(ids.shape), perm, *found)  # type: ignore[arg-type]
    if embedded.numel() == ids.numel() and torch.equal(embedded.flatten(), ids.flatten().to(embedded)):
        return Arrangement(tuple(ids.shape), (), (), (), flat=True)
    if embedded.shape == ids.shape and not exact:  # with other values in their places
        everything = tuple(slice(0, size) for size in ids.shape)
        return Arrangement(tuple(ids.shape), tuple(range(ids.dim())), everything, everything)
    return None


def _block(embedded: Tensor, ids: Tensor, *, both: bool) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Where the ids are in what was embedded, and which part of them that is: one of the two is whole."""
    for outer, inner in ((embedded, ids), (ids, embedded))[: 1 + both]:
        for place in _places(outer.shape, inner.shape):
            if torch.equal(outer[place].long(), inner.long().to(outer.device)):
                whole = tuple(slice(0, size) for size in inner.shape)
                return (place, whole) if outer is embedded else (whole, place)
    return None


def _places(outer: torch.Size, inner: torch.Size) -> Iterator[tuple[slice, ...]]:
    """All places for a block, that in front first."""
    free = [o - i for o, i in zip(outer, inner, strict=True)]
    if any(room < 0 for room in free):
        return
    total = 1
    for room in free:
        total *= room + 1
    if total > _MOST_PLACES:
        free = [0] * len(free)
    for start in product(*(range(room + 1) for room in free)):
        yield tuple(slice(at, at + size) for at, size in zip(start, inner, strict=True))


def is_symmetric(ids: Tensor) -> bool:
    """Whether the values cannot tell if the ids were transposed."""
    square = ids.dim() == 2 and ids.shape[0] == ids.shape[1] > 1
    return square and torch.equal(ids, ids.T)


def not_told(name: str, embedded: Tensor, ids: Tensor) -> AttributionError:
    """The error where it cannot be told which embedding belongs to which id."""
    return AttributionError(
        f"{name} of shape {list(ids.shape)} is embedded as {list(embedded.shape)}, with other ids between them, so it "
        f"cannot be told which embedding belongs to which; pass inputs_embeds="
    )
