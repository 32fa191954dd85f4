"""What can be taken out of an input, token, pixel, patch or feature, and what is put in its place."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attribution.inputs import pair
from .probe import Change, Probe

BASELINES = ("zero", "mean", "blur")


class Removal:
    """How parts of an input are removed: which parts there are, and what takes their place.

    Args:
        probe: the model and its inputs.
        baseline: see :func:`~lxt_compose.evaluate.flip`.
        patch: height and width of a patch in pixels, or None for single pixels.

    Raises:
        ValueError: the baseline or the patch does not fit the input.
    """

    def __init__(self, probe: Probe, baseline: Any, patch: int | tuple[int, int] | None) -> None:
        self.probe, self.baseline, x = probe, baseline, probe.x
        self.is_image = not probe.is_ids and x.dim() == 4
        if x.dim() > 4:
            raise ValueError(
                f"tokens, features, pixels and patches can be removed, not parts of an input of shape {list(x.shape)}"
            )
        self._check_baseline()
        if patch is not None and not self.is_image:
            raise ValueError(f"patches are of images [n, channels, height, width], got an input of {list(x.shape)}")
        self.patch = None if patch is None else pair(patch)
        self.shape = self._shape()

    def _check_baseline(self) -> None:
        baseline, x = self.baseline, self.probe.x
        if isinstance(baseline, Tensor):
            if not self.probe.is_ids and not _broadcasts(baseline, x):
                raise ValueError(
                    f"the baseline of shape {list(baseline.shape)} does not broadcast to the input {list(x.shape)}"
                )
            return
        fitting = BASELINES if self.is_image else BASELINES[:2]
        is_number = isinstance(baseline, (int, float)) and not isinstance(baseline, bool) and math.isfinite(baseline)
        if not is_number and baseline not in fitting:
            raise ValueError(
                f"for an input of shape {list(x.shape)} baseline must be one of {', '.join(fitting)}, a finite number, "
                f"a tensor, or for token ids the id of a mask token, got {baseline!r}"
            )

    def _shape(self) -> tuple[int, ...]:
        """The shape of the units of one sample."""
        x = self.probe.x
        if self.is_image:
            height, width = self.patch or (1, 1)
            if min(height, width) < 1 or x.shape[2] % height or x.shape[3] % width:
                raise ValueError(f"patches of {height} x {width} do not tile images of {list(x.shape[2:])}")
            return (x.shape[2] // height, x.shape[3] // width)
        return tuple(x.shape[1:2])

    @property
    def count(self) -> int:
        """How many units a sample has."""
        return math.prod(self.shape)

    def real(self) -> Tensor:
        """Which units can be removed, [n, units]: all but padding."""
        mask, n = self.probe.mask, self.probe.given.count
        return torch.ones(n, self.count, dtype=torch.bool) if mask is None else mask.cpu() != 0

    def scores_of(self, scores: Any) -> Tensor:
        """Scores for each unit, [n, units]: those of pixels are summed over patches.

        Raises:
            ValueError: their shape is not that of the units.
        """
        scores = getattr(scores, "scores", scores)
        if isinstance(scores, dict):
            raise TypeError(
                f"the attribution has several inputs; pass the scores of the one removed, {self.probe.name!r}"
            )
        if not isinstance(scores, Tensor):
            raise TypeError(f"scores must be a tensor or an Attribution of one input, got {type(scores).__name__}")
        n = self.probe.given.count
        scores = scores.detach().cpu().double()
        if self.is_image and self.patch is not None and scores.shape == (n, *self.probe.x.shape[2:]):
            height, width = self.patch
            scores = scores.unfold(1, height, height).unfold(2, width, width).sum((-1, -2))
        if scores.shape != (n, *self.shape) and scores.shape != (n, self.count):
            what = "patches" if self.patch else "pixels" if self.is_image else "tokens or features"
            wanted = [n, *self.shape]
            raise ValueError(f"scores must be of shape {wanted}, one for each of the {what}, got {list(scores.shape)}")
        if not scores.isfinite().all():
            raise ValueError("scores hold NaN or infinite values")
        units: Tensor = scores.reshape(n, self.count)
        return units

    def changes(self, samples: Tensor, removed: Tensor) -> dict[str, Change]:
        """The change to be made for passes that start at `samples` [m] and lose the units `removed` [m, units]."""

        def exchanged(values: Tensor, group: Tensor) -> Tensor:
            gone, start = removed[group.cpu()].to(values.device), samples[group.cpu()]
            if self.probe.is_ids and values.shape[:2] != gone.shape:
                return values  # an embedding of something else
            return torch.where(self._spread(gone, values), self._stand_in(values, start), values)

        def masked(ids: Tensor, group: Tensor) -> Tensor:
            return ids.masked_fill(removed[group.cpu()].to(ids.device), self.baseline)

        if not self.probe.is_ids:
            return {"change": exchanged}
        is_id = isinstance(self.baseline, int) and not isinstance(self.baseline, bool)
        return {"change": masked} if is_id else {"embedded": exchanged}

    def _spread(self, removed: Tensor, x: Tensor) -> Tensor:
        """The removed units as a mask that broadcasts to the input."""
        if not self.is_image:
            return removed.reshape(len(x), -1, *[1] * (x.dim() - 2))
        grid = removed.reshape(len(x), 1, *self.shape)
        for dim, size in zip((2, 3), self.patch or (1, 1), strict=True):
            grid = grid.repeat_interleave(size, dim)
        return grid

    def _stand_in(self, values: Tensor, samples: Tensor) -> Tensor:
        """What takes the place of removed units in these values, which are of these samples."""
        if isinstance(self.baseline, Tensor):
            given = self.baseline.to(values)
            each = given.dim() == values.dim() and len(given) == self.probe.given.count
            return given[samples.to(given.device)] if each else given
        if self.baseline == "mean":
            if values.dim() == 2:
                return self.probe.x.mean(0)
            return values.mean((2, 3), keepdim=True) if self.is_image else self._mean_token(values, samples)
        if self.baseline == "blur":
            return blurred(values)
        return values.new_full((), 0.0 if self.baseline == "zero" else float(self.baseline))

    def _mean_token(self, values: Tensor, samples: Tensor) -> Tensor:
        """The mean of each sequence's tokens without its padding, [m, 1, features]."""
        weights = self.real()[samples.cpu()].to(values.device, torch.float64)[..., None]
        mean = (values.double() * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        return mean.to(values.dtype)


def _broadcasts(given: Tensor, x: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(given.shape, x.shape) == x.shape
    except RuntimeError:
        return False


def blurred(images: Tensor, sigma: float | None = None) -> Tensor:
    """Images after a Gaussian blur, by default of a sixth of their smaller side; edges are repeated."""
    height, width = images.shape[-2:]
    sigma = min(height, width) / 6 if sigma is None else sigma
    radius = max(1, round(2 * sigma))
    steps = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[..., None], groups=images.shape[1])
    return F.conv2d(rows, kernel[:, :, None], groups=images.shape[1])
