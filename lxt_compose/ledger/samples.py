"""Which sample each element of a tensor belongs to: followed from the inputs through every operation of a forward pass.

A batch does not stay in front: attention merges it with the heads, ``[T, B, d]`` has it second, a router of experts
picks rows from all samples. So each tensor has a *layout*: one dimension, and the sample of each slice along it.
Operations that move elements are run once more on the samples' codes in place of values; the others keep the dimension.
Where that leads to nothing the layout is unknown (None).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, lcm, prod
from typing import Any

import torch
from torch import Tensor

from ..numerics import map_tensors, tensors_in
from ..ops import DROPOUTS, Family, Op, mutates
from .journal import Row

NOBODY = -1
_CPU = torch.device("cpu")
_SMALL = 2**13


@dataclass(frozen=True, eq=False)
class Layout:
    """Dimension `dim` of a tensor, and the sample of each slice along it (``NOBODY`` where no sample is)."""

    dim: int
    owner: Tensor
    plain: bool = False
    """The owners are 0, 1, 2, ... in order."""

    def same(self, other: Layout) -> bool:
        """Whether both say the same."""
        return self.dim == other.dim and (self.owner is other.owner or torch.equal(self.owner, other.owner))

    def moved(self, dim: int) -> Layout:
        """The same owners along another dimension."""
        return self if dim == self.dim else Layout(dim, self.owner, self.plain)


def in_front(samples: int) -> Layout:
    """The layout of an input: sample i is slice i of the first dimension."""
    return Layout(0, torch.arange(samples), plain=True)


def by_sample(relevance: Tensor, layout: Layout | None, samples: int) -> Tensor:
    """The sums over each sample, and last what is left: of shape [samples + 1], in float64 where the device has it."""
    sums = _sums(relevance, layout, samples)
    row = relevance.new_zeros(samples + 1, dtype=_wide(relevance))
    row[_place_of_all(samples) if sums.dim() == 0 else slice(len(sums))] = sums
    return row


def row_of(relevance: Tensor, layout: Layout | None, samples: int) -> Row:
    """The same; numbers of the CPU without a tensor around them.

    Thousands of small tensors that stay, between large ones that go, would leave the heap in pieces.
    """
    if relevance.device.type != "cpu":
        return by_sample(relevance, layout, samples)
    sums = _sums(relevance, layout, samples).tolist()
    row = array("d", bytes(8 * (samples + 1)))
    if isinstance(sums, float):
        row[_place_of_all(samples)] = sums
    else:
        row[: len(sums)] = array("d", sums)
    return row


def _place_of_all(samples: int) -> int:
    """Where in a row a sum stands that is not told apart: it is a single sample's, or nobody's."""
    return 0 if samples == 1 else samples


def _wide(relevance: Tensor) -> torch.dtype:
    return torch.float32 if relevance.device.type == "mps" else torch.float64


def _sums(relevance: Tensor, layout: Layout | None, samples: int) -> Tensor:
    """The sums over each sample, with or without what is left; or, without dimensions, the sum of all."""
    small = relevance.numel() < _SMALL  # a cast that costs nothing; else torch's pairwise sums are good enough
    dtype = _wide(relevance) if small else torch.promote_types(relevance.dtype, torch.float32)
    if samples == 1 or layout is None or layout.owner.numel() != relevance.shape[layout.dim]:
        return relevance.sum(dtype=dtype)
    others = [dim for dim in range(relevance.dim()) if dim != layout.dim]
    slices = relevance.sum(others, dtype=dtype) if others else relevance.to(dtype)
    if layout.plain:
        return slices
    owner = layout.owner.to(relevance.device)
    sums = slices.new_zeros(samples + 1, dtype=_wide(relevance))
    return sums.index_add_(0, torch.where(owner == NOBODY, samples, owner), slices.to(sums.dtype))


# They keep each element in its place ...
_CASTS = frozenset("clone contiguous to type type_as float double half bfloat16 alias".split())
_IN_PLACE = DROPOUTS | _CASTS | {"masked_fill"}
# ... or the order of the elements.
_IN_ORDER = frozenset("view view_as reshape reshape_as flatten unflatten squeeze unsqueeze".split())
# Linear with weights that are not negative: run on codes, and on ones, they give the codes' weighted mean.
_AVERAGES = frozenset(
    """
    sum nansum mean nanmean cumsum sum_to_size avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d interpolate index_add scatter_add fold index_put put
""".split()
)


def layouts_after(
    op: Op | None,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    known: Sequence[tuple[Tensor, Layout | None]],
    outputs: Sequence[Tensor],
    samples: int,
) -> list[Layout | None]:
    """The layouts of the outputs of an operation.

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
    first = layouts[0]
    front = all(layout.plain and layout.dim == 0 for _, layout in layouts)
    if front and op is None and all(z.dim() and z.shape[0] == samples for z in outputs):
        return [first[1]] * len(outputs)
    if op is not None and op.name in _IN_ORDER and len(known) == len(outputs) == 1:
        return [_in_order(first[1], first[0].shape, outputs[0].shape, samples)]
    if op is not None and op.name in _IN_PLACE and all(z.shape == first[0].shape for z in outputs):
        return [first[1]] * len(outputs)
    if op is not None and (op.family is Family.MOVEMENT or op.name in _AVERAGES):
        return _by_codes(op, function, args, kwargs, known, outputs, samples)
    return [_kept(op, layouts, z) for z in outputs]


def layout_like(x: Tensor, sources: Sequence[Layout | None]) -> Layout | None:
    """The layout of a tensor that was made out of sight from sources which all have one and the same."""
    first = sources[0] if sources else None
    if first is None or any(layout is None or not layout.same(first) for layout in sources):
        return None
    return first if x.dim() > first.dim and x.shape[first.dim] == first.owner.numel() else None


_ALIGNED_RIGHT = (Family.PRODUCT, Family.CONTRACTION, Family.DIVISION, Family.ACTIVATION)


def _kept(op: Op | None, layouts: list[tuple[Tensor, Layout]], z: Tensor) -> Layout | None:
    """The layout of an output whose batch dimension is that of the inputs; None where they do not agree."""
    found: list[Layout] = []
    for x, layout in layouts:
        if z.dim() == x.dim():
            dim = layout.dim
        elif op is not None and (op.family in _ALIGNED_RIGHT or op.name in ("add", "sub", "rsub")):
            dim = layout.dim + z.dim() - x.dim()
        else:
            fitting = [d for d, size in enumerate(z.shape) if size == layout.owner.numel()]
            dim = fitting[0] if len(fitting) == 1 else -1
        if not 0 <= dim < z.dim() or z.shape[dim] != layout.owner.numel():
            return None
        found.append(layout.moved(dim))
    return found[0] if all(layout.same(found[0]) for layout in found) else None


def _in_order(layout: Layout, old: Sequence[int], new: Sequence[int], samples: int) -> Layout | None:
    """The layout of elements that keep their order in another shape.

    Element k of a tensor stands at place ``k // step % size`` of a dimension, so whose it is depends on k with a period
    of ``step * size``, and changes at multiples of step.
    """
    size, step = old[layout.dim], prod(old[layout.dim + 1 :])
    places = [(dim, new[dim], prod(new[dim + 1 :])) for dim in range(len(new))]
    for dim, new_size, new_step in places:
        if (new_size, new_step) == (size, step):
            return layout.moved(dim)
    for dim, new_size, new_step in places:
        if new_size > 1:
            k = torch.arange(0, min(prod(new), lcm(step * size, new_step * new_size)), gcd(step, new_step))
            whose, place = layout.owner[k // step % size], k // new_step % new_size
            owner = torch.full((new_size,), NOBODY).scatter_reduce_(0, place, whose, "amax")
            if bool(((whose == owner[place]) | (whose == NOBODY)).all()):
                return Layout(dim, owner, plain=torch.equal(owner, torch.arange(samples)))
    return None


def _by_codes(
    op: Op,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    known: Sequence[tuple[Tensor, Layout | None]],
    outputs: Sequence[Tensor],
    samples: int,
) -> list[Layout | None]:
    """Run the operation with the samples' codes in place of values, and read off where they went."""
    lines = {id(x): _line(layout, samples, x.device) for x, layout in known if layout is not None}
    try:
        moved = _results(function, args, kwargs, _coded(known, lines))
        if op.name in _AVERAGES:
            ones = {key: (line != 0).to(line.dtype) for key, line in lines.items()}
            weights = _results(function, args, kwargs, _coded(known, ones))
            moved = [value / weight for value, weight in zip(moved, weights, strict=True)]
    except (RuntimeError, TypeError, ValueError, IndexError):
        return [None] * len(outputs)
    by_shape = {tuple(tensor.shape): tensor for tensor in reversed(moved)}
    if len(moved) == len(outputs):
        pairs = list(zip(outputs, moved, strict=True))
    else:
        pairs = [(z, by_shape[tuple(z.shape)]) for z in outputs if tuple(z.shape) in by_shape]
    given = {lines[id(x)].data_ptr(): layout for x, layout in known if layout is not None}
    read = {id(z): _read(value, _codes(samples), given) for z, value in pairs if value.shape == z.shape}
    return [read.get(id(z)) for z in outputs]


@lru_cache(maxsize=8)
def _codes(samples: int, device: torch.device = _CPU) -> Tensor:
    """Distinct numbers, ascending, of which no average is another of them."""
    steps = torch.rand(samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (1 + steps).cumsum(0).to(device)


def _line(layout: Layout, samples: int, device: torch.device) -> Tensor:
    """The codes of the owners; 0 is nobody's."""
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
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], coded: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    in_place = mutates(function, args, kwargs)
    # A view needs memory that is laid out like the tensor's own; for all else a broadcast code will do.
    whole = in_place or getattr(function, "__name__", "") in ("view", "view_as", "as_strided")
    layout = torch.contiguous_format
    given = map_tensors(lambda t: coded(t).clone(memory_format=layout) if whole else coded(t), (args, kwargs))
    with torch.no_grad():
        output = function(*given[0], **{name: value for name, value in given[1].items() if name != "dtype"})
    results = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
    if in_place:
        results = results or [next(tensors_in(given))]
    return [tensor.double() for tensor in results]


def _read(values: Tensor, codes: Tensor, given: Mapping[int, Layout]) -> Layout | None:
    """The dimension along which the codes stand, and whose they are; `given` are the layouts of lines in memory."""
    if not values.numel() or not values.dim():
        return None
    # A view of broadcast codes moves through memory along the samples alone.
    moving = [
        dim for dim, (step, size) in enumerate(zip(values.stride(), values.shape, strict=True)) if step and size > 1
    ]
    if len(moving) < 2:
        dim = moving[0] if moving else 0
        line = values[tuple(slice(None) if d == dim else 0 for d in range(values.dim()))]
        layout = given.get(line.data_ptr())
        if layout is not None and len(line) == layout.owner.numel() and line.is_contiguous():
            return layout.moved(dim)  # the very line that went in
        return _layout_along(dim, line, codes)
    for dim in moving:
        slices = values.movedim(dim, 0).reshape(values.shape[dim], -1)
        line = slices.amax(1)
        if bool((((slices - line[:, None]).abs_() < 1e-6) | (slices == 0)).all()):
            return _layout_along(dim, line, codes)
    return None if values.isfinite().all() else _read(values.nan_to_num(0, 0, 0), codes, given)


def _layout_along(dim: int, line: Tensor, codes: Tensor) -> Layout | None:
    """The layout of a tensor whose slices along `dim` hold the codes in `line`; 0 is nobody's."""
    line = line.cpu()
    index = torch.searchsorted(codes, line - 0.5).clamp(max=len(codes) - 1)
    owner = torch.where((codes[index] - line).abs() < 1e-6, index, NOBODY)
    if ((owner == NOBODY) & (line != 0) & line.isfinite()).any():
        return None  # a mixture of several samples
    return Layout(dim, owner, plain=torch.equal(owner, torch.arange(len(codes))))
