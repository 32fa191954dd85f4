"""Layouts: where the samples of a batch are in a tensor; for views and reshaped tensors by strides and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm, prod

import torch
from torch import Tensor

from ..torch_internals import storage_of

NOBODY = -1


@dataclass(frozen=True, eq=False)
class Layout:
    """Dimension `dim` of a tensor, and the sample of each slice along it (``NOBODY`` where no sample is)."""

    dim: int
    owner: Tensor
    plain: bool = False
    """The owners are 0, 1, 2, ... in order."""

    def same(self, other: Layout) -> bool:
        """Return whether two layouts are equal."""
        return self.dim == other.dim and (self.owner is other.owner or torch.equal(self.owner, other.owner))

    def moved(self, dim: int) -> Layout:
        """Return the same owners along another dimension."""
        return self if dim == self.dim else Layout(dim, self.owner, self.plain)


def in_front(samples: int) -> Layout:
    """Return the layout of an input: sample i is slice i of the first dimension."""
    return Layout(0, torch.arange(samples), plain=True)


def sole_owner(layouts: Sequence[tuple[Tensor, Layout]]) -> int | None:
    """Return the one sample that all these tensors belong to, as where a model goes through its samples in a loop."""
    if any(layout.plain for _, layout in layouts):  # of several samples, as everywhere else in a model
        return None
    owners = {owner for _, layout in layouts for owner in layout.owner.unique().tolist()}
    return owners.pop() if len(owners) == 1 and NOBODY not in owners else None


def of_one(sample: int, x: Tensor) -> Layout | None:
    """Return the layout of a tensor that belongs to one sample; a number has no dimension to say so."""
    return Layout(0, torch.full((x.shape[0],), sample)) if x.dim() else None


def layout_like(x: Tensor, sources: Sequence[Layout | None]) -> Layout | None:
    """Return the layout of a tensor that an unseen operation made of sources that all have this layout."""
    first = sources[0] if sources else None
    if first is None or any(layout is None or not layout.same(first) for layout in sources):
        return None
    return first if x.dim() > first.dim and x.shape[first.dim] == first.owner.numel() else None


def by_strides(x: Tensor, layout: Layout, z: Tensor) -> Layout | None:
    """Return the layout of a view z of x that has all samples along one of its dimensions, found by strides.

    The position along x's dimension of samples is a digit, at `step`, of the position in memory. The same digit counts
    in a view that has a dimension of this step and size, while its other dimensions never carry into it.
    """
    if x.layout is not torch.strided or x.dtype != z.dtype or storage_of(x) != storage_of(z):
        return None
    step, size = x.stride(layout.dim), x.shape[layout.dim]
    if not step or size < 2:
        return None
    start = (z.storage_offset() - x.storage_offset()) % (step * size)
    for dim in range(z.dim()):
        if z.stride(dim) == step and z.shape[dim] == size:
            clear = _below(x, layout.dim, step * size) < step and start + _below(z, dim, step * size) < step
            return layout.moved(dim) if clear else None
    return None


def layout_of_whole(view: Tensor, layout: Layout | None, whole: Tensor) -> Layout | None:
    """Return the layout of a tensor, from a view of it that has all samples: the dimension of equal step and size."""
    if layout is None or view.shape[layout.dim] < 2:
        return None
    wanted = view.stride(layout.dim), view.shape[layout.dim]
    found = [dim for dim in range(whole.dim()) if (whole.stride(dim), whole.shape[dim]) == wanted]
    return layout.moved(found[0]) if len(found) == 1 else None


def _below(x: Tensor, dim: int, period: int) -> int:
    """Return how far the other dimensions reach with steps that are no multiples of the period."""
    others = [(x.shape[d] - 1, x.stride(d)) for d in range(x.dim()) if d != dim]
    return sum(count * step for count, step in others if step % period)


def in_order(layout: Layout, old: Sequence[int], new: Sequence[int], samples: int) -> Layout | None:
    """Return the layout of elements that keep their order in another shape.

    Element k of a tensor stands at place ``k // step % size`` of a dimension, so whose it is depends on k with a period
    of ``step * size``, and changes at multiples of step.
    """
    size, step = old[layout.dim], prod(old[layout.dim + 1 :])
    places = [(dim, new[dim], prod(new[dim + 1 :])) for dim in range(len(new))]
    for dim, new_size, new_step in places:
        if (new_size, new_step) == (size, step):
            return layout.moved(dim)
    for dim, new_size, new_step in places:
        if new_size > 1 and new_step < step * size and step < new_step * new_size:
            unit, period = gcd(step, new_step), lcm(step * size, new_step * new_size)
            line = layout.owner.view(1, -1, 1).expand(period // (step * size), -1, step // unit)
            line = line.reshape(-1, new_size, new_step // unit)
            owner = line.amax((0, 2))
            if bool(((line == owner.view(-1, 1)) | (line == NOBODY)).all()):
                return Layout(dim, owner, plain=torch.equal(owner, torch.arange(samples)))
    return None
