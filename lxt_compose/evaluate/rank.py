"""Rank correlation, sample by sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Return the ranks along the last dimension, from 1; equal values share the mean of their ranks. float64."""
    ordered, order = values.sort(-1)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    group = starts.long().cumsum(-1) - 1
    place = torch.arange(1, values.shape[-1] + 1, dtype=torch.float64, device=values.device).expand(values.shape)
    sums, counts = torch.zeros_like(place), torch.zeros_like(place)
    sums.scatter_add_(-1, group, place.contiguous())
    counts.scatter_add_(-1, group, torch.ones_like(place))
    shared = (sums / counts.clamp(min=1)).gather(-1, group)
    return torch.empty_like(shared).scatter_(-1, order, shared)


def correlation(a: Any, b: Any, *, kind: str = "spearman", mask: Tensor | None = None) -> Tensor:
    """Return the correlation of two sets of scores for each of n samples: [n], from -1 to 1; NaN where one is constant.

    Pearson: ``cov(a, b) / (std(a) std(b))``; Spearman: the same of the ranks, equal values sharing their mean rank.

    Args:
        a: scores [n, ...], or an :class:`Attribution`.
        b: scores of the same shape.
        kind: "spearman" or "pearson".
        mask: [n, ...]; places where it is 0 (padding) are left out.

    Raises:
        TypeError: an attribution has several inputs.
        ValueError: shapes differ, a score is not finite, or the kind is unknown.

    Source: Spearman 1904.
    """
    a, b = _tensor(a), _tensor(b)
    if kind not in ("spearman", "pearson"):
        raise ValueError(f"kind must be 'spearman' or 'pearson', got {kind!r}")
    if a.shape != b.shape or (mask is not None and mask.shape != a.shape):
        shapes = ", ".join(str(list(t.shape)) for t in (a, b, mask) if t is not None)
        raise ValueError(f"scores (and the mask) must have the same shape, got {shapes}")
    if a.dim() < 2:
        raise ValueError(
            f"scores are [n, ...] for n samples, got {list(a.shape)}; those of one sample are scores[None]"
        )
    found = []
    for sample in range(len(a)):
        kept = slice(None) if mask is None else mask[sample].flatten().cpu() != 0
        one, other = (scores[sample].flatten()[kept].double() for scores in (a, b))
        if not (one.isfinite().all() and other.isfinite().all()):
            raise ValueError(f"the scores of sample {sample} hold NaN or infinite values")
        found.append(_correlation(one, other, kind))
    return torch.stack(found)


def _tensor(scores: Any) -> Tensor:
    scores = getattr(scores, "scores", scores)
    if isinstance(scores, dict):
        raise TypeError(f"the attribution has several inputs, {', '.join(scores)}; pass the scores of one of them")
    return torch.as_tensor(scores).detach().cpu()


def _correlation(a: Tensor, b: Tensor, kind: str) -> Tensor:
    if kind == "spearman":
        a, b = ranks(a), ranks(b)
    a, b = a - a.mean(), b - b.mean()
    size = (a.square().sum() * b.square().sum()).sqrt()
    return torch.where(size > 0, (a * b).sum() / size, torch.nan)
