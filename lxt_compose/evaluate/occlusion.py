"""Occlusion: the contribution of each part, measured by leaving it out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.axes import BATCH
from .probe import Probe
from .removal import Removal


def leave_one_out(
    model: nn.Module,
    inputs: Any,
    *,
    target: Any = None,
    baseline: Any = "zero",
    patch: int | tuple[int, ...] | None = None,
    batch_size: int | None = None,
    dims: Any = None,
    input: str | None = None,
) -> Tensor:
    """Return how much the explained number falls when one token, pixel, patch or feature is removed alone.

    ``f(x) - f(x without unit i)``, one forward pass for each unit. Padding gets 0.

    Args:
        model: any module, in ``eval()`` mode.
        inputs: what :func:`attribute` takes.
        target: what :func:`attribute` takes; None is the arg-max of the unchanged input.
        baseline: the replacement of removed parts; see :func:`flip`.
        patch: size of patches in pixels, one number or (height, width); of series one number, of volumes and videos
            one number or as many as there are dimensions; None for single pixels or points.
        batch_size: how many forward passes to run at a time; results do not depend on it.
        dims: what :func:`attribute` takes.
        input: the name of the input that parts are removed from; None is the first.

    Returns:
        A tensor in the units of the explained number, [n, tokens], [n, height, width] or [n, features], as ``scores``
        of an :class:`Attribution` are.

    Raises:
        ValueError: shapes do not fit, or the baseline is unknown.

    Source: Zeiler and Fergus 2014 (occlusion); Li et al. 2016 (erasure of words).
    """
    with torch.inference_mode(False):
        probe = Probe(model, inputs, target, batch_size, dims=dims, input=input)
        removal = Removal(probe, baseline, patch)
        effects = effects_of(probe, removal).reshape(probe.given.count, *removal.shape)
    return effects if BATCH in removal.dims else effects[0]


def effects_of(probe: Probe, removal: Removal) -> Tensor:
    """Return how much the explained number falls without each unit, [n, units]; 0 for padding."""
    real = removal.real()
    samples, units = real.nonzero(as_tuple=True)
    removed = torch.nn.functional.one_hot(units, removal.count).bool()
    found = probe.values[samples] - probe.of(samples, **removal.changes(samples, removed))
    effects = found.new_zeros(real.shape)
    effects[samples, units] = found
    return effects
