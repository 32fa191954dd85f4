"""Means of several methods over the same samples: intervals, and the methods that may be the best."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_AT_A_TIME = 1 << 22
"""The number of drawn samples held at once."""


class Resampled:
    """Means of the rows of a table over samples that are drawn again, all rows by the same draws.

    For draw b with n samples i_1, ..., i_n drawn with replacement: ``m_b = mean_k x[:, i_k]``, and its deviation
    ``d_b = (m_b - mean(x)) sqrt(n / (n - 1))``, whose variance is that of the mean.

    Args:
        values: x, [rows, n] with n >= 2, finite.
        draws: how many means are drawn.
        seed: of the draws.

    Source: Efron 1979 (bootstrap).
    """

    def __init__(self, values: Tensor, *, draws: int = 2000, seed: int = 0) -> None:
        n = values.shape[1]
        self.values, self.means = values, values.mean(1)
        generator = torch.Generator().manual_seed(seed)
        parts, centered = [], values - self.means[:, None]
        for count in torch.arange(draws).split(max(1, _AT_A_TIME // n)):
            picks = torch.randint(n, (len(count), n), generator=generator)
            weights = torch.zeros(len(count), n, dtype=values.dtype)
            parts.append(weights.scatter_add_(1, picks, torch.ones_like(weights)) @ centered.T / n)
        self.deviations = torch.cat(parts) * math.sqrt(n / (n - 1))
        """[draws, rows]"""

    def interval(self, confidence: float) -> tuple[Tensor, Tensor]:
        """Return the lower and the upper end of an interval of each row's mean, [rows]."""
        tail = (1 - confidence) / 2
        low, high = self.deviations.quantile(torch.tensor([tail, 1 - tail], dtype=self.values.dtype), dim=0)
        return self.means + low, self.means + high

    def may_be_best(self, confidence: float) -> Tensor:
        """Return which rows may have the largest true mean, [rows], true or false.

        Row c is ruled out if for some row b the difference D of their means is too large for the noise,
        ``max_b D_bc / s_bc > q_c``, where s is the standard deviation of D over the draws, and q_c the quantile
        `confidence` of ``max_b (D*_bc - D_bc) / s_bc`` over the draws. So the row whose true mean is the largest is
        among the rest with this confidence, however many rows there are. Rows that are the same in all samples stand
        or fall together.

        Source: Gupta 1965 (subset selection); Romano and Wolf 2005 (quantiles of a maximum by bootstrap).
        """
        kept = []
        for row in range(len(self.means)):
            ahead = self.means - self.means[row]
            noise = self.deviations - self.deviations[:, row : row + 1]
            size = noise.square().mean(0).sqrt()
            certain = size <= 1e-12 * (self.means.abs().max() + self.values.abs().max())
            scaled = torch.where(certain, 0.0, noise / torch.where(certain, 1.0, size))
            limit = scaled.max(1).values.quantile(confidence)
            found = torch.where(certain, 0.0, ahead / torch.where(certain, 1.0, size)).max()
            sure = bool((ahead[certain] > 1e-9 * self.values.abs().max()).any())
            kept.append(not sure and bool(found <= limit))
        return torch.tensor(kept)
