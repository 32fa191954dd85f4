"""Images as functions of parameters, and regularizers that keep gradient ascent on them from noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FOURIER, PIXELS = "fourier", "pixels"


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """Settings of gradient ascent on images; lengths are in pixels, angles in degrees.

    Attributes:
        steps: of gradient ascent, by Adam.
        rate: its step size, in the parameters of the images.
        parametrization: ``"fourier"``: the parameters are Fourier coefficients, divided by their frequency, so that a
            step changes all frequencies as natural images have them; or ``"pixels"``.
        jitter: images are shifted by up to this in each step; None is a sixteenth of the smaller side.
        rotate: images are rotated by up to this.
        zoom: images are enlarged or reduced by up to this share.
        total_variation: the weight of ``mean |x_ij - x_i+1,j| + mean |x_ij - x_i,j+1|``, in activations per range of
            pixels.
        colors: a matrix [channels, channels] that the parameters' channels are multiplied by, such as
            :func:`color_matrix` of some photographs: a step then changes colors as they vary together there.
        seed: of the first images and of the transformations.
    """

    steps: int = 128
    rate: float = 0.05
    parametrization: str = FOURIER
    jitter: float | None = None
    rotate: float = 5.0
    zoom: float = 0.05
    total_variation: float = 0.0
    colors: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.parametrization not in (FOURIER, PIXELS):
            raise ValueError(f"images are parametrized by 'fourier' or 'pixels', got {self.parametrization!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps!r}")


def color_matrix(images: Tensor) -> Tensor:
    """Return how the channels of images vary together: ``S^(1/2)`` of the covariance S of pixels, scaled to length 1.

    Args:
        images: [n, channels, height, width].

    Source: Olah et al. 2017, section "Preconditioning and parameterization".
    """
    pixels = images.detach().double().movedim(1, 0).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(pixels))
    root = vectors * values.clamp_min(0).sqrt()
    return root / root.norm(dim=1).max()


class Canvas:
    """Images in (0, 1) as functions of parameters, ``leaf``."""

    def __init__(
        self, count: int, shape: tuple[int, ...], how: Ascent, like: Tensor, generator: torch.Generator
    ) -> None:
        self._colors = None if how.colors is None else how.colors.detach().to(like)
        channels, self._height, self._width = shape
        self._scale: Tensor | None = None
        size: tuple[int, ...] = (count, channels, self._height, self._width)
        if how.parametrization == FOURIER:
            rows, columns = (
                torch.fft.fftfreq(self._height, dtype=torch.float64)[:, None],
                torch.fft.rfftfreq(self._width, dtype=torch.float64)[None],
            )
            scale = 1 / (rows.square() + columns.square()).sqrt().clamp_min(1 / max(self._height, self._width))
            self._scale = (scale / scale.square().mean().sqrt()).to(like)[..., None]
            size = (count, channels, *scale.shape, 2)
        start = 0.1 * torch.randn(size, generator=generator)
        self.leaf = start.to(like).requires_grad_()

    def images(self) -> Tensor:
        """Return the images, [count, channels, height, width]."""
        z = self.leaf
        if self._scale is not None:
            spectrum = torch.view_as_complex((z * self._scale).contiguous())
            z = torch.fft.irfft2(spectrum, s=(self._height, self._width), norm="ortho")
        return torch.sigmoid(z if self._colors is None else torch.einsum("ij,njhw->nihw", self._colors, z))


def moved(images: Tensor, how: Ascent, generator: torch.Generator) -> Tensor:
    """Return the images shifted, turned and zoomed at random, each in its own way; borders are mirrored."""
    count, _, height, width = images.shape
    jitter = min(height, width) / 16 if how.jitter is None else how.jitter
    if not (jitter or how.rotate or how.zoom):
        return images
    angle, zoom, down, right = 2 * torch.rand(4, count, generator=generator, dtype=torch.float64) - 1
    angle, zoom = angle * math.radians(how.rotate), 1 + zoom * how.zoom
    # Coordinates of grids go from -1 to 1 along each side, so a rotation needs their ratio.
    ratio = height / width
    first = torch.stack([angle.cos() * zoom, -angle.sin() * zoom * ratio, right * 2 * jitter / width], 1)
    second = torch.stack([angle.sin() * zoom / ratio, angle.cos() * zoom, down * 2 * jitter / height], 1)
    grid = F.affine_grid(torch.stack([first, second], 1).to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def variation(images: Tensor) -> Tensor:
    """Return the total variation of images in (0, 1), summed over them."""
    down, right = images.diff(dim=2).abs(), images.diff(dim=3).abs()
    return down.flatten(1).mean(1).sum() + right.flatten(1).mean(1).sum()
