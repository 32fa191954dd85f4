"""Where an operation moves samples, found by running it on codes of samples in place of values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..autograd.trees import map_tensors, tensors_in
from ..ops import Op, mutates
from .layouts import NOBODY, Layout

_CPU = torch.device("cpu")


def by_codes(
    results: Callable[[Callable[[Tensor], Tensor]], list[Tensor]],
    known: Sequence[tuple[Tensor, Layout | None]],
    outputs: Sequence[Tensor],
    samples: int,
    *,
    averaged: bool,
) -> list[Layout | None]:
    """Run the operation on the samples' codes in place of values, and return the layouts of the results."""
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
    """Distinct numbers, ascending, no average of which is one of them."""
    steps = torch.rand(samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (1 + steps).cumsum(0).to(device)


def _line(layout: Layout, samples: int, device: torch.device) -> Tensor:
    """Return the codes of the owners; 0 stands for no sample."""
    if layout.plain:
        return _codes(samples, device)
    return torch.where(layout.owner == NOBODY, 0, _codes(samples)[layout.owner.clamp(min=0)]).to(device)


def _coded(known: Sequence[tuple[Tensor, Layout | None]], lines: dict[int, Tensor]) -> Callable[[Tensor], Tensor]:
    layouts = {id(x): layout for x, layout in known}

    def coded(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        layout = layouts.get(id(tensor))
        if layout is None:  # it belongs to no sample, and has no weight in an average
            return torch.zeros((), dtype=torch.float64, device=tensor.device).expand(tensor.shape)
        shape = [1] * tensor.dim()
        shape[layout.dim] = -1
        return lines[id(tensor)].view(shape).expand(tensor.shape)

    return coded


def rerun(
    op: Op,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    coded: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Run an operation on other values of its tensors, in float64."""
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
    """Return the dimension along which the codes differ, and their owners."""
    if not values.numel() or not values.dim() or values.layout is not torch.strided:
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
    """Return the layout of a tensor whose slices along `dim` hold the codes in `line`; 0 stands for no sample."""
    line = line.cpu()
    index = torch.searchsorted(codes, line - 0.5).clamp(max=len(codes) - 1)
    owner = torch.where((codes[index] - line).abs() < 1e-6, index, NOBODY)
    if ((owner == NOBODY) & (line != 0) & line.isfinite()).any():
        return None  # a mixture of several samples
    return Layout(dim, owner, plain=torch.equal(owner, torch.arange(len(codes))))
