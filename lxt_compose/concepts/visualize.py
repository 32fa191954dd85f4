"""Feature visualization: images that make a unit most active, found by gradient ascent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..attribution.failures import telling
from ..attribution.inputs import read_inputs
from ..errors import AttributionError
from ..torch_internals.traces import on_cpu
from .canvas import Ascent, Canvas, moved, variation
from .notebooks import html_of
from .passes import missing
from .units import HEAD, Layout, Place, Units, find_units
from .visits import Visit, Visits

if TYPE_CHECKING:
    from ..heatmap import ImageGrid


@dataclass(frozen=True, eq=False)
class FeatureImages:
    """Images that make units most active.

    Attributes:
        names: of the units.
        images: [units, channels, height, width], in the values that the model takes.
        activations: of each unit on its final image: [units].
        first: the same before the first step.
        limits: the lowest and highest value of a pixel, each [channels, 1, 1].
    """

    names: tuple[str, ...]
    images: Tensor
    activations: Tensor
    first: Tensor
    limits: tuple[Tensor, Tensor]

    def heatmap(self, **options: Any) -> ImageGrid:
        """Return a picture of the images, in color if they have three channels, else in gray by their mean.

        Args:
            options: of :func:`~lxt_compose.heatmap.image_grid`.
        """
        from ..heatmap import image_grid

        low, high = self.limits
        titles = [f"{name}: {value:.3g}" for name, value in zip(self.names, self.activations.tolist(), strict=True)]
        shown = (self.images - low) / (high - low)
        shown = shown if shown.shape[1] == 3 else shown.mean(1, keepdim=True)
        return image_grid(shown, **{"titles": titles, **options})

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[2:]))
        return f"<FeatureImages of {len(self.names)} units, {size}: {', '.join(self.names[:3])}>"

    def _repr_html_(self) -> str:
        return html_of(self, self.heatmap)


def visualize(
    model: nn.Module,
    units: Any,
    *,
    shape: Sequence[int],
    limits: tuple[Any, Any] = (0.0, 1.0),
    how: Ascent | None = None,
    sign: float = 1.0,
) -> FeatureImages:
    """Find for each unit an image that makes it most active.

    Maximized is ``sign * a(T(x)) - w TV(x)`` for the mean a of the unit's activation over its places (of a head: of
    the length of its vector), with a random shift, turn and zoom T in each step, and

        x = low + (high - low) sigmoid(z),   z = irfft2(c / max(|f|, 1 / max(H, W))) up to a constant

    for Fourier coefficients c at frequencies f. Every unit has an image of its own; all are in one batch. Nothing of
    the model is changed, nor of its gradients.

    Args:
        model: a module in eval mode that takes images [batch, channels, height, width] alone.
        units: see :func:`find_units`: ``"conv2[3]"`` is a channel, ``"conv2[3]@4,4"`` a neuron of it; each unit that
            is named has an image.
        shape: of an image: (channels, height, width).
        limits: the lowest and the highest value of a pixel as the model takes it, numbers or one for each channel.
        how: steps, parametrization and regularizers.
        sign: -1 for images that make units least active.

    Raises:
        ValueError: the model is in train mode, or the shape or the limits are wrong.
        AttributionError: a place was not reached, or several times with no call named, or it does not depend on the
            image.

    Source: Olah et al. 2017 (objectives, transformation robustness, frequencies); Mordvintsev et al. 2018 (sigmoid and
    Fourier parametrization); Mahendran and Vedaldi 2015, section 3 (total variation).
    """
    how = how or Ascent()
    if model.training:
        raise ValueError("images would depend on each other in train mode: call model.eval() first")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape is (channels, height, width) of one image, got {tuple(shape)}")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    low, high = (torch.as_tensor(limit).to(like).reshape(-1, 1, 1).expand(shape[0], 1, 1) for limit in limits)
    if not (low < high).all():
        raise ValueError(f"limits are the lowest and the highest value of a pixel, got {limits}")
    goal = _Goal(model, find_units(model, units))
    generator = torch.Generator().manual_seed(how.seed)
    with torch.inference_mode(False), torch.enable_grad():
        count = goal.count((low + (high - low) / 2).expand(1, *shape))
        canvas = Canvas(count, tuple(shape), how, like, generator)
        with torch.no_grad():
            first = goal.activations(low + (high - low) * canvas.images())
        _ascend(canvas, goal, how, sign, (low, high), generator)
        with torch.no_grad():
            images = low + (high - low) * canvas.images()
            found = goal.activations(images)
    ends = low.detach().cpu(), high.detach().cpu()
    return FeatureImages(tuple(goal.names), on_cpu(images), on_cpu(found), on_cpu(first), ends)


def _ascend(
    canvas: Canvas, goal: _Goal, how: Ascent, sign: float, limits: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    """Change the parameters of the images, step by step."""
    low, high = limits
    optimizer = torch.optim.Adam([canvas.leaf], how.rate)
    for _ in range(how.steps):
        seen = moved(canvas.images(), how, generator)
        gain = goal.activations(low + (high - low) * seen).sum()
        canvas.leaf.grad = -sign * _slope(gain, canvas.leaf, goal.names)
        if how.total_variation:
            (rough,) = torch.autograd.grad(variation(canvas.images()), canvas.leaf)
            canvas.leaf.grad += how.total_variation * rough
        optimizer.step()


def _slope(gain: Tensor, leaf: Tensor, names: list[str]) -> Tensor:
    """Return the derivative of the objective with respect to the parameters of the images."""
    found = torch.autograd.grad(gain, leaf, allow_unused=True)[0] if gain.requires_grad else None
    if found is None:
        raise AttributionError(f"{names[0]} does not depend on the image")
    return found


class _Goal:
    """The activation of each unit on its own image of a batch."""

    def __init__(self, model: nn.Module, units: list[Units]) -> None:
        self._model, self._units = model, units
        self._places = list(dict.fromkeys(each.place for each in units))
        self.names: list[str] = []
        self._rows: list[tuple[int, int]] = []

    def count(self, image: Tensor) -> int:
        """Return how many units there are, from a pass with one image."""
        for entry, (each, (layout, _)) in enumerate(zip(self._units, self._met(image), strict=True)):
            for number in each.numbers(layout):
                at = each.text.partition("@")[2]
                self.names.append(f"{each.place.name}[{number}]" + (f"@{at}" if at else ""))
                self._rows.append((entry, number))
        return len(self._rows)

    def activations(self, images: Tensor) -> Tensor:
        """Return the mean over places of the activation of each unit on its image, [units]."""
        values = []
        for each, (layout, x) in zip(self._units, self._met(images), strict=True):
            mask = Units(each.text, each.place, None, each.at).mask(layout, x.device).expand(x.shape)
            per_unit = layout.per_unit(x.square() * mask).clamp_min(1e-24).sqrt() if HEAD in layout.dims else None
            sums = layout.per_unit(x * mask) if per_unit is None else per_unit
            counts = (layout.per_unit(mask.to(x.dtype)) > 0).flatten(2).sum(2) if sums.dim() > 2 else 1
            values.append((sums.flatten(2).sum(2) if sums.dim() > 2 else sums) / counts)
        return torch.stack([values[entry][row, number] for row, (entry, number) in enumerate(self._rows)])

    def _met(self, images: Tensor) -> list[tuple[Layout, Tensor]]:
        """Run the model; return the layout and the tensor of each entry of units."""
        met: dict[Place, list[Visit]] = {}

        def keep(visit: Visit) -> None:
            visit.tensor = visit.tensor * 1  # a copy, which the model does not change in place
            met.setdefault(visit.place, []).append(visit)

        with Visits(self._model, self._places, keep) as visits:
            with telling(self._model, read_inputs(self._model, images.detach())):
                self._model(images)
            found = []
            for each in self._units:
                seen = met.get(each.place, [])
                if len(seen) != 1:
                    times = f"{each.place.name} ran {len(seen)} times: say which call is meant, {each.place.name}#1"
                    raise AttributionError(times if seen else missing(each.place))
                found.append((visits.layout(seen[0]), seen[0].tensor))
        return found
