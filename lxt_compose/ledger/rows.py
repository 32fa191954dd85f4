"""Rows: relevance summed over each sample, for the journal."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from .journal import Row
from .layouts import NOBODY, Layout

_SMALL = 2**13


def by_sample(relevance: Tensor, layout: Layout | None, samples: int) -> Tensor:
    """Return the sums over each sample, and last the part of no sample: [samples + 1], in float64 where possible."""
    sums = _sums(relevance, layout, samples)
    row = relevance.new_zeros(samples + 1, dtype=_wide(relevance))
    row[_place_of_all(samples) if sums.dim() == 0 else slice(len(sums))] = sums
    return row


def row_of(relevance: Tensor, layout: Layout | None, samples: int) -> Row:
    """Return the same as numbers without a tensor around them, where they are on the CPU.

    Thousands of small tensors that live between freed large ones would fragment the heap.
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
    """Return the position in a row of a sum over all samples: that of the only sample, or the last one."""
    return 0 if samples == 1 else samples


def _wide(relevance: Tensor) -> torch.dtype:
    return torch.float32 if relevance.device.type == "mps" else torch.float64


def _sums(relevance: Tensor, layout: Layout | None, samples: int) -> Tensor:
    """Return the sums over each sample, with or without the rest; without dimensions, the sum of all."""
    small = relevance.numel() < _SMALL  # a cast costs nothing; torch's pairwise sums of larger ones are exact enough
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
