"""Flipping: parts of the input are removed step by step in the order of their scores, and the model runs each time."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from .chart import chart
from .probe import Probe, check_count
from .removal import Removal


@dataclass(frozen=True, eq=False)
class Flip:
    """Curves of n samples: the explained number after a part of the input was removed.

    ``fractions`` [steps + 1] is the part that was removed, 0 to 1; ``morf`` [n, steps + 1] the number when the most
    relevant goes first, ``lerf`` when the least relevant does. Units are those of the explained number.
    """

    fractions: Tensor
    morf: Tensor
    lerf: Tensor

    @property
    def morf_area(self) -> Tensor:
        """The area under each MoRF curve, [n]: its mean over the removed part. Low is good."""
        return torch.trapezoid(self.morf, self.fractions)

    @property
    def lerf_area(self) -> Tensor:
        """The area under each LeRF curve, [n]. High is good."""
        return torch.trapezoid(self.lerf, self.fractions)

    @property
    def difference(self) -> Tensor:
        """``LeRF area - MoRF area`` of each sample, [n]. High is good."""
        return self.lerf_area - self.morf_area

    @property
    def gain(self) -> float:
        """The symmetric relevance gain: the mean over samples of ``LeRF area - MoRF area``.

        It is the gain over a random order when the most relevant goes first, ``random - MoRF``, plus that when the
        least relevant does, ``LeRF - random``. The random order cancels, and with it most of the effect of the baseline
        on the model.

        Source: Bluecher et al. 2024 (symmetric relevance gain).
        """
        return float(self.difference.mean())

    def __str__(self) -> str:
        n = len(self.morf)
        return (
            f"symmetric relevance gain {self.gain:.4g} over {n} sample{'s' * (n != 1)} "
            f"(LeRF area {float(self.lerf_area.mean()):.4g}, MoRF area {float(self.morf_area.mean()):.4g})"
        )

    def _repr_html_(self) -> str:
        curves = {"least relevant first": self.lerf.mean(0), "most relevant first": self.morf.mean(0)}
        return f"<div><p>{escape(str(self))}</p>{chart(self.fractions, curves)}</div>"


def flip(
    model: nn.Module,
    inputs: Any,
    scores: Any,
    *,
    target: Any = None,
    baseline: Any = "zero",
    patch: int | tuple[int, ...] | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    dims: Any = None,
    input: str | None = None,
) -> Flip:
    """Remove tokens, pixels, points in time or features in the order of their scores, and in the opposite order.

    Args:
        model: any module, in ``eval()`` mode.
        inputs: what :func:`attribute` takes; padding (by the attention mask) is never removed.
        scores: one for each unit: [n, tokens], [n, height, width] for pixels or for patches, [n, features], as
            the ``scores`` of an :class:`Attribution`, or one itself. Pixel scores are summed over
            patches. Ties are broken by the order of the units.
        target: what :func:`attribute` takes; None is the arg-max of the unchanged input.
        baseline: the replacement of removed parts: "zero"; "mean" (of an image each channel's mean, of a sequence
            the mean of its tokens, of a table the mean over samples); "blur" (images); a number; a tensor that
            broadcasts to the input. For token ids an integer is the id of a mask token, and all else is put in the
            place of embeddings.
        patch: size of patches in pixels, one number or (height, width); of series one number, of volumes and videos
            one number or as many as there are dimensions; None for single pixels or points.
        steps: how many steps from nothing to everything; None: one for each unit.
        batch_size: how many forward passes to run at a time; results do not depend on it.
        dims: what :func:`attribute` takes.
        input: the name of the input that parts are removed from; None is the first.

    Returns:
        The curves, as a `Flip`.

    Raises:
        ValueError: shapes do not fit, scores are not finite, or the baseline is unknown.

    Source: Samek et al. 2017 (region perturbation); areas of both orders: Ali et al. 2022, Bluecher et al. 2024.
    """
    with torch.inference_mode(False):
        probe = Probe(model, inputs, target, batch_size, dims=dims, input=input)
        removal = Removal(probe, baseline, patch)
        values = removal.scores_of(scores)
        steps = removal.count if steps is None else steps
        check_count("steps", steps)
        morf, lerf = (curve_of(probe, removal, signed, steps) for signed in (-values, values))
    return Flip(fractions_of(steps), morf, lerf)


def fractions_of(steps: int) -> Tensor:
    """Return the part that is removed after each step, [steps + 1]."""
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def curve_of(probe: Probe, removal: Removal, scores: Tensor, steps: int) -> Tensor:
    """Return the explained number while the units of the lowest scores go first, [n, steps + 1].

    Args:
        probe: the model and its inputs.
        removal: the units, and their replacement.
        scores: of the units, [n, units].
        steps: how many from nothing to everything.
    """
    real = removal.real()
    return _curve(probe, removal, order(scores, real), real, fractions_of(steps))


def order(scores: Tensor, real: Tensor) -> Tensor:
    """Return the rank of each unit when the lowest scores go first, [n, units]; padding comes last."""
    places = scores.masked_fill(~real, torch.inf).sort(dim=1, stable=True).indices
    ranks = torch.empty_like(places)
    return ranks.scatter_(1, places, torch.arange(scores.shape[1]).expand_as(places))


def _curve(probe: Probe, removal: Removal, rank: Tensor, real: Tensor, fractions: Tensor) -> Tensor:
    """Return the explained number after each step, [n, steps + 1]."""
    n, steps = len(rank), len(fractions)
    counts = (fractions[None] * real.sum(1, keepdim=True)).round().long()
    samples = torch.arange(n).repeat_interleave(steps - 1)
    removed = rank[samples] < counts[:, 1:].reshape(-1, 1)
    found = probe.of(samples, **removal.changes(samples, removed)).double()
    return torch.cat([probe.values.double()[:, None], found.reshape(n, steps - 1)], 1)
