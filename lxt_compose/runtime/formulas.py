"""Functions of torch that are a formula of two or three others, which have rules; see :mod:`.decompositions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def times_log(log: Callable[[Tensor], Tensor], of_zero: float, input: Any, other: Any, *, out: Any = None) -> Tensor:
    """Return ``input * log(other)``, and 0 where the input is 0 whatever the other is.

    Args:
        log: the logarithm.
        of_zero: where it is 0.
        input: a tensor or a number.
        other: a tensor or a number.
        out: not used.
    """
    x, y = (
        value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64) for value in (input, other)
    )
    return log(torch.where(x == 0, of_zero, y)) * x


def corrcoef(input: Tensor) -> Tensor:
    """Return the covariances over the product of both standard deviations, which a division holds constant."""
    covariance = torch.cov(input)
    if covariance.dim() == 0:
        return covariance / covariance
    spread = torch.real(covariance.diagonal()).sqrt()
    return covariance / (spread[:, None] * spread)


def polar(abs: Tensor, angle: Tensor, *, out: Any = None) -> Tensor:
    """Return ``abs * cos(angle) + i * abs * sin(angle)``."""
    return torch.complex(abs * torch.cos(angle), abs * torch.sin(angle))
