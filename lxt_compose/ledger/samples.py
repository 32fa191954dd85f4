"""Which sample each element of a tensor belongs to: followed from the inputs through every operation of a forward pass.

A batch does not stay in front: attention merges it with the heads, ``[T, B, d]`` has it second, a router of experts
picks rows from all samples. So each tensor has a *layout*: one dimension, and the sample of each slice along it. In a
view it is read off strides and sizes. Other operations that move elements are run once more on the samples' codes in
place of values; all the others keep the dimension. Where that leads to nothing the layout is unknown (None).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import gcd, lcm, prod
from typing import Any

import torch
from torch import Tensor

from ..autograd.trees import map_tensors, tensors_in
from ..ops import Elements, Family, Op, mutates
from ..torch_internals import storage_of

NOBODY = -1
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Layout:
    """Dimension `dim` of a tensor, and the sample of each slice along it (``NOBODY`` where no sample is)."""

    dim: int
    owner: Tensor
    plain: bool = False
    """The owners are 0, 1, 2, ... in order."""

    def same(self, other: Layout) -> bool:
        """Return whether both say the same."""
        return self.dim == other.dim and (self.owner is other.owner or torch.equal(self.owner, other.owner))

    def moved(self, dim: int) -> Layout:
        """Return the same owners along another dimension."""
        return self if dim == self.dim else Layout(dim, self.owner, self.plain)


def in_front(samples: int) -> Layout:
    """Return the layout of an input: sample i is slice i of the first dimension."""
    return Layout(0, torch.arange(samples), plain=True)


def layouts_after(
    op: Op | None,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    known: Sequence[tuple[Tensor, Layout | None]],
    outputs: Sequence[Tensor],
    samples: int,
) -> list[Layout | None]:
    """Return the layouts of the outputs of an operation.

    Args:
        op: the operation; None for one without a family, and for a module that is taken as one.
        function: what was called.
        args: its arguments as they were given.
        kwargs: its keyword arguments.
        known: the carriers and their layouts; tensors that all samples share (a bias) have None.
        outputs: the output tensors, and tensors that were changed in place.
        samples: how many samples there are.
    """
    layouts = [(x, layout) for x, layout in known if layout is not None]
    if samples == 1 or not layouts:
        return [None] * len(outputs)
    x, layout = layouts[0]
    if op is None:
        front = all(layout.plain and layout.dim == 0 for _, layout in layouts)
        front = front and all(z.dim() and z.shape[0] == samples for z in outputs)
        return [layout if front else _kept(op, layouts, z) for z in outputs]
    elements = op.traits.elements
    if elements is Elements.SAME_PLACE and all(z.shape == x.shape for z in outputs):
        return [layout] * len(outputs)
    if op.family is Family.MOVEMENT and len(known) == 1 and all(z is not x for z in outputs):
        viewed = [_by_strides(x, layout, z) for z in outputs]
        if None not in viewed:
            return viewed
        if elements is Elements.SAME_ORDER and len(outputs) == 1:
            return [_in_order(layout, x.shape, outputs[0].shape, samples)]
    if elements is Elements.JOINED and _joins_beside(layouts, args, kwargs):
        return [layout] * len(outputs)
    if op.family is Family.MOVEMENT or elements is Elements.AVERAGED:
        function = op.traits.element_sum or function
        moved = partial(_results, op, function, args, kwargs)
        return _by_codes(moved, known, outputs, samples, averaged=elements is Elements.AVERAGED)
    if elements is Elements.MIXED and not _keeps_rows(layouts, args):
        return [None] * len(outputs)
    return [_kept(op, layouts, z) for z in outputs]


def _keeps_rows(layouts: Sequence[tuple[Tensor, Layout]], args: tuple[Any, ...]) -> bool:
    """Return whether samples stay apart where rows are combined: before the last two dimensions, or with a constant."""
    (x, layout), *others = layouts
    first_of_two = bool(args) and x is args[0] and len(args) > 1 and isinstance(args[1], Tensor)
    return all(layout.dim < x.dim() - 2 for x, layout in layouts) or (first_of_two and not others and layout.dim == 0)


def layout_like(x: Tensor, sources: Sequence[Layout | None]) -> Layout | None:
    """Return the layout of a tensor that was made out of sight from sources which all have one and the same."""
    first = sources[0] if sources else None
    if first is None or any(layout is None or not layout.same(first) for layout in sources):
        return None
    return first if x.dim() > first.dim and x.shape[first.dim] == first.owner.numel() else None


_ALIGNED_RIGHT = (Family.PRODUCT, Family.CONTRACTION, Family.DIVISION, Family.ACTIVATION)


def _kept(op: Op | None, layouts: list[tuple[Tensor, Layout]], z: Tensor) -> Layout | None:
    """Return the layout of an output whose batch dimension is that of the inputs; None where they do not agree."""
    found: list[Layout] = []
    for x, layout in layouts:
        if z.dim() == x.dim():
            dim = layout.dim
        elif op is not None and (op.family in _ALIGNED_RIGHT or op.traits.elements is Elements.BROADCAST):
            dim = layout.dim + z.dim() - x.dim()
        else:
            fitting = [d for d, size in enumerate(z.shape) if size == layout.owner.numel()]
            dim = fitting[0] if len(fitting) == 1 else -1
        if not 0 <= dim < z.dim() or z.shape[dim] != layout.owner.numel():
            return None
        found.append(layout.moved(dim))
    return found[0] if all(layout.same(found[0]) for layout in found) else None


def _joins_beside(layouts: Sequence[tuple[Tensor, Layout]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether tensors are joined along a dimension in which no sample differs from another."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    x, layout = layouts[0]
    return isinstance(dim, int) and dim % x.dim() != layout.dim and all(layout.same(other) for _, other in layouts)


def _by_strides(x: Tensor, layout: Layout, z: Tensor) -> Layout | None:
    """Return the layout of a view z of x that has the samples along one of its dimensions, all of them.

    Found by strides.

    If a place in memory is a number whose digit at `step` says where it is along x's dimension of samples, then that
    is so in a view too which has a dimension of this step and size, while its others never carry into that digit.
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
    """Return the layout of a tensor of which a view is known that has all samples.

    The dimension of the same step and size.
    """
    if layout is None or view.shape[layout.dim] < 2:
        return None
    wanted = view.stride(layout.dim), view.shape[layout.dim]
    found = [dim for dim in range(whole.dim()) if (whole.stride(dim), whole.shape[dim]) == wanted]
    return layout.moved(found[0]) if len(found) == 1 else None


def _below(x: Tensor, dim: int, period: int) -> int:
    """Return how far the other dimensions reach by steps that are no multiples of the period."""
    others = [(x.shape[d] - 1, x.stride(d)) for d in range(x.dim()) if d != dim]
    return sum(count * step for count, step in others if step % period)


def _in_order(layout: Layout, old: Sequence[int], new: Sequence[int], samples: int) -> Layout | None:
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


def _by_codes(
    results: Callable[[Callable[[Tensor], Tensor]], list[Tensor]],
    known: Sequence[tuple[Tensor, Layout | None]],
    outputs: Sequence[Tensor],
    samples: int,
    *,
    averaged: bool,
) -> list[Layout | None]:
    """Run the operation with the samples' codes in place of values, and read off where they went."""
    lines = {id(x): _line(layout, samples, x.device) for x, layout in known if layout is not None}
    try:
        moved = results(_coded(known, lines))
        if averaged:  # of the codes, and of ones: the codes' weighted mean
            ones = {key: (line != 0).to(line.dtype) for key, line in lines.items()}
            weights = results(_coded(known, ones))
            moved = [value / weight for value, weight in zip(moved, weights, strict=True)]
    except (RuntimeError, TypeError, ValueError, IndexError):
        return [None] * len(outputs)
    by_shape = {tuple(tensor.shape): tensor for tensor in reversed(moved)}
    if len(moved) == len(outputs):
        pairs = list(zip(outputs, moved, strict=True))
    else:
        pairs = [(z, by_shape[tuple(z.shape)]) for z in outputs if tuple(z.shape) in by_shape]
    read = {id(z): _read(value, _codes(samples)) for z, value in pairs if value.shape == z.shape}
    return [read.get(id(z)) for z in outputs]


@lru_cache(maxsize=8)
def _codes(samples: int, device: torch.device = _CPU) -> Tensor:
    """Distinct numbers, ascending, of which no average is another of them."""
    steps = torch.rand(samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (1 + steps).cumsum(0).to(device)


def _line(layout: Layout, samples: int, device: torch.device) -> Tensor:
    """Return the codes of the owners; 0 is nobody's."""
    if layout.plain:
        return _codes(samples, device)
    return torch.where(layout.owner == NOBODY, 0, _codes(samples)[layout.owner.clamp(min=0)]).to(device)


def _coded(known: Sequence[tuple[Tensor, Layout | None]], lines: dict[int, Tensor]) -> Callable[[Tensor], Tensor]:
    layouts = {id(x): layout for x, layout in known}

    def coded(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        layout = layouts.get(id(tensor))
        if layout is None:  # it is nobody's, and has no weight in an average
            return torch.zeros((), dtype=torch.float64, device=tensor.device).expand(tensor.shape)
        shape = [1] * tensor.dim()
        shape[layout.dim] = -1
        return lines[id(tensor)].view(shape).expand(tensor.shape)

    return coded


def _results(
    op: Op,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    coded: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    in_place = mutates(function, args, kwargs)
    # A view needs memory that is laid out like the tensor's own; for all else a broadcast code will do.
    whole = in_place or op.traits.reads_strides
    layout = torch.contiguous_format
    given = map_tensors(lambda t: coded(t).clone(memory_format=layout) if whole else coded(t), (args, kwargs))
    with torch.no_grad():
        output = function(*given[0], **{name: value for name, value in given[1].items() if name != "dtype"})
    results = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
    if in_place:
        results = results or [next(tensors_in(given))]
    return [tensor.double() for tensor in results]


def _read(values: Tensor, codes: Tensor) -> Layout | None:
    """Return the dimension along which the codes stand, and whose they are."""
    if not values.numel() or not values.dim():
        return None
    # A view of broadcast codes moves through memory along the samples alone.
    moving = [
        dim for dim, (step, size) in enumerate(zip(values.stride(), values.shape, strict=True)) if step and size > 1
    ]
    if len(moving) < 2:
        dim = moving[0] if moving else 0
        line = values[tuple(slice(None) if d == dim else 0 for d in range(values.dim()))]
        return _layout_along(dim, line, codes)
    for dim in moving:
        slices = values.movedim(dim, 0).reshape(values.shape[dim], -1)
        line = slices.amax(1)
        if bool((((slices - line[:, None]).abs_() < 1e-6) | (slices == 0)).all()):
            return _layout_along(dim, line, codes)
    return None if values.isfinite().all() else _read(values.nan_to_num(0, 0, 0), codes)


def _layout_along(dim: int, line: Tensor, codes: Tensor) -> Layout | None:
    """Return the layout of a tensor whose slices along `dim` hold the codes in `line`; 0 is nobody's."""
    line = line.cpu()
    index = torch.searchsorted(codes, line - 0.5).clamp(max=len(codes) - 1)
    owner = torch.where((codes[index] - line).abs() < 1e-6, index, NOBODY)
    if ((owner == NOBODY) & (line != 0) & line.isfinite()).any():
        return None  # a mixture of several samples
    return Layout(dim, owner, plain=torch.equal(owner, torch.arange(len(codes))))
