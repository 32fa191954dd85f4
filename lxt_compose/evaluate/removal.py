"""Removal of parts of an input (tokens, pixels, patches, features), and their replacement."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attribution.axes import BATCH, UNKNOWN, kept_dims, place_of
from ..attribution.inputs import pair
from .probe import Change, Probe

BASELINES = ("zero", "mean", "blur")


class Removal:
    """How parts of an input are removed: the units, and their replacement.

    Args:
        probe: the model and its inputs.
        baseline: see :func:`~lxt_compose.evaluate.flip`.
        patch: the size of a patch, of images its height and width in pixels; None for single pixels.

    Raises:
        ValueError: the baseline or the patch does not fit the input.
    """

    def __init__(self, probe: Probe, baseline: Any, patch: int | tuple[int, ...] | None) -> None:
        self.probe, self.baseline, x = probe, baseline, probe.x
        self.dims = probe.dims
        if UNKNOWN in self.dims:
            raise ValueError(
                f"tokens, features, pixels and patches can be removed, not parts of an input of shape {list(x.shape)} "
                f"whose dimensions are not known; pass dims=, such as 'batch channel depth height width'"
            )
        kept = kept_dims(self.dims)
        self.places = [place for place, dim in enumerate(self.dims) if dim in kept and dim != BATCH]
        """The dimensions of the input that the units lie along."""
        self.units = tuple(self.dims[place] for place in self.places)
        self.is_image = self.units == ("height", "width")
        self._check_baseline()
        self.patch = None if patch is None else self._patch(patch)
        self.shape = self._shape()

    def _patch(self, patch: int | tuple[int, ...]) -> tuple[int, ...]:
        """Return the size of a patch along each of the units' dimensions."""
        spatial = [dim in ("time", "depth", "height", "width") for dim in self.units]
        if not any(spatial) or self.probe.is_ids:
            raise ValueError(
                f"patches are of images [n, channels, height, width], series and volumes, got an input of "
                f"{list(self.probe.x.shape)}"
            )
        if self.is_image:
            return pair(patch)
        if isinstance(patch, int) and not isinstance(patch, bool):
            return tuple(patch if along else 1 for along in spatial)
        if isinstance(patch, (tuple, list)) and len(patch) == len(spatial):
            return tuple(patch)
        raise TypeError(
            f"the size of a patch is a whole number or one for each of {', '.join(self.units)}, got {patch!r}"
        )

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
        """Return the shape of the units of one sample."""
        sizes = [self.probe.x.shape[place] for place in self.places]
        patch = self.patch or (1,) * len(sizes)
        if min(patch, default=1) < 1 or any(size % part for size, part in zip(sizes, patch, strict=True)):
            what = "images" if self.is_image else " x ".join(self.units)
            raise ValueError(f"patches of {' x '.join(map(str, patch))} do not tile {what} of {sizes}")
        return tuple(size // part for size, part in zip(sizes, patch, strict=True))

    @property
    def count(self) -> int:
        """How many units a sample has."""
        return math.prod(self.shape)

    def real(self) -> Tensor:
        """Return which units can be removed, [n, units]: all but padding."""
        mask, n = self.probe.mask, self.probe.given.count
        if mask is None:
            return torch.ones(n, self.count, dtype=torch.bool)
        real = mask.cpu() != 0
        for dim, size in enumerate(self.patch or (), 1):
            real = real.unflatten(dim, (-1, size)).any(dim + 1)
        return real.flatten(1)

    def scores_of(self, scores: Any) -> Tensor:
        """Return scores for each unit, [n, units]: those of pixels are summed over patches.

        Raises:
            ValueError: their shape is not that of the units.
        """
        scores = getattr(scores, "scores", scores)
        if isinstance(scores, dict):
            if not self.probe.chosen:
                raise TypeError(
                    f"the attribution has several inputs; pass the scores of the one removed, {self.probe.name!r}, or "
                    f"its name as input="
                )
            scores = scores[self.probe.name]
        if not isinstance(scores, Tensor):
            raise TypeError(f"scores must be a tensor or an Attribution of one input, got {type(scores).__name__}")
        n = self.probe.given.count
        scores = scores.detach().cpu().double()
        scores = scores if BATCH in self.dims else scores.reshape(1, *scores.shape)
        if self.patch is not None and scores.shape == (n, *(self.probe.x.shape[place] for place in self.places)):
            for dim, size in enumerate(self.patch, 1):
                scores = scores.unflatten(dim, (-1, size)).sum(dim + 1)
        if scores.shape != (n, *self.shape) and scores.shape != (n, self.count):
            what = "patches" if self.patch else "pixels" if self.is_image else "tokens or features"
            wanted = [n, *self.shape]
            raise ValueError(f"scores must be of shape {wanted}, one for each of the {what}, got {list(scores.shape)}")
        if not scores.isfinite().all():
            raise ValueError("scores hold NaN or infinite values")
        units: Tensor = scores.reshape(n, self.count)
        return units

    def changes(self, samples: Tensor, removed: Tensor) -> dict[str, Change]:
        """Return the change for passes that start at `samples` [m] and lose the units `removed` [m, units]."""

        def exchanged(values: Tensor, group: Tensor) -> Tensor:
            gone, start = removed[group.cpu()].to(values.device), samples[group.cpu()]
            if self.probe.is_ids and values.shape[:-1] != (len(gone), *self.shape):
                return values  # the embedding of another input
            return torch.where(self._spread(gone), self._stand_in(values, start), values)

        def masked(ids: Tensor, group: Tensor) -> Tensor:
            return ids.masked_fill(removed[group.cpu()].to(ids.device).reshape(ids.shape), self.baseline)

        if not self.probe.is_ids:
            return {"change": exchanged}
        is_id = isinstance(self.baseline, int) and not isinstance(self.baseline, bool)
        return {"change": masked} if is_id else {"embedded": exchanged}

    def _spread(self, removed: Tensor) -> Tensor:
        """Return the removed units as a mask that broadcasts to the input."""
        grid = removed.reshape(len(removed), *self.shape)
        for dim, size in enumerate(self.patch or (), 1):
            grid = grid.repeat_interleave(size, dim)
        batch = place_of(self.dims, BATCH)
        if batch is None:
            grid = grid[0]
        else:
            grid = grid.movedim(0, sum(place < batch for place in self.places))
        for place, name in enumerate(self.dims):
            if place not in self.places and name != BATCH:
                grid = grid.unsqueeze(place)
        return grid

    def _stand_in(self, values: Tensor, samples: Tensor) -> Tensor:
        """Return the values that replace removed units of these samples."""
        batch = place_of(self.dims, BATCH)
        if isinstance(self.baseline, Tensor):
            given = self.baseline.to(values)
            each = batch is not None and given.dim() == values.dim() and given.shape[batch] == self.probe.given.count
            return given.index_select(batch, samples.to(given.device)) if each and batch is not None else given
        if self.baseline == "mean":
            if self.units == ("feature",) and batch is not None:
                return self.probe.x.mean(batch, keepdim=True)
            mask = self.probe.mask
            return values.mean(self.places, keepdim=True) if mask is None else self._mean_token(values, samples)
        if self.baseline == "blur":
            return blurred(values)
        return values.new_full((), 0.0 if self.baseline == "zero" else float(self.baseline))

    def _mean_token(self, values: Tensor, samples: Tensor) -> Tensor:
        """Return the mean of each sequence's tokens without its padding."""
        weights = self._spread(self.real()[samples.cpu()]).to(values.device, torch.float64)
        mean = (values.double() * weights).sum(self.places, keepdim=True) / weights.sum(self.places, keepdim=True)
        return mean.to(values.dtype)


def _broadcasts(given: Tensor, x: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(given.shape, x.shape) == x.shape
    except RuntimeError:
        return False


def blurred(images: Tensor, sigma: float | None = None) -> Tensor:
    """Return images after a Gaussian blur, by default of a sixth of their smaller side; edges are repeated."""
    height, width = images.shape[-2:]
    sigma = min(height, width) / 6 if sigma is None else sigma
    radius = max(1, round(2 * sigma))
    steps = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[..., None], groups=images.shape[1])
    return F.conv2d(rows, kernel[:, :, None], groups=images.shape[1])
