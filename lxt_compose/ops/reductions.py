"""Sums of the elements that other reductions reduce, with the same arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sum_for_prod(input: Tensor, *args: Any, dtype: Any = None, out: Any = None, **kwargs: Any) -> Tensor:
    """Return the sum along the dimensions that ``prod`` multiplies along."""
    return torch.sum(input, *args, **kwargs)


def sum_for_cumprod(input: Tensor, dim: Any, dtype: Any = None, out: Any = None) -> Tensor:
    """Return the running sum for ``cumprod``."""
    return torch.cumsum(input, dim)


def sum_for_scatter_reduce(
    input: Tensor, dim: Any, index: Tensor, src: Tensor, reduce: str, include_self: bool = True, out: Any = None
) -> Tensor:
    """Return the sum for ``scatter_reduce`` in any of its ways."""
    return torch.scatter_reduce(input, dim, index, src, "sum", include_self=include_self)


def sum_for_index_reduce(
    input: Tensor, dim: Any, index: Tensor, source: Tensor, reduce: str, include_self: bool = True, out: Any = None
) -> Tensor:
    """Return the sum for ``index_reduce`` in any of its ways."""
    kept = input if include_self else input.index_fill(dim, index, 0)
    return kept.index_add(dim, index, source)


def sum_for_segment_reduce(data: Tensor, reduce: str, *, initial: Any = None, **segments: Any) -> Tensor:
    """Return the sum for ``segment_reduce`` in any of its ways."""
    return torch.segment_reduce(data, "sum", **segments)
