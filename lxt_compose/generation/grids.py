"""Images and sounds among the sources of an answer: grids of places, their relevance, and the picture below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attribution.axes import UNKNOWN, Dims
from ..attribution.inputs import Inputs

IMAGE, SOUND, FRAME, OTHER = "image", "sound", "frame", "input"
_SIDE, _BANDS, _STEPS = 48, 16, 240
"""The largest numbers of rows and columns of an image, of bands of mel bins, and of steps of time."""
_HIGH, _WIDE = 96, 960


@dataclass(frozen=True, eq=False)
class Grid:
    """Places of an image, a frame of a video, or a sound: ``rows`` times ``columns``, row by row, from the top.

    ``name`` is that of its side of the sources. The rows of a spectrogram are bands of mel bins, the highest first; a
    wave has one row. ``picture`` shows the input, uint8 [height, width, 3] or [height, width], its values stretched
    from the least to the largest; None if there is none. ``seconds`` is the duration of a column of a sound, None if it
    is unknown or there is no sound.
    """

    name: str
    kind: str
    rows: int
    columns: int
    picture: Tensor | None = None
    seconds: float | None = None

    def __len__(self) -> int:
        return self.rows * self.columns

    def called(self) -> list[str]:
        """Return the name of each place."""
        if len(self) == 1:
            return [self.name]
        return [
            f"{self.name} {self._row(row)}{self._column(c)}" for row in range(self.rows) for c in range(self.columns)
        ]

    def _row(self, row: int) -> str:
        if self.kind == IMAGE:
            return f"row {row}, "
        return f"band {self.rows - 1 - row}, " if self.rows > 1 else ""

    def _column(self, column: int) -> str:
        if self.seconds is not None:
            return f"{column * self.seconds:.2f} s"
        return f"{'column' if self.kind == IMAGE else 'step'} {column}"


@dataclass(frozen=True)
class Seen:
    """The grids of one input, and the function from the input's relevance to that of the places, [places]."""

    grids: tuple[Grid, ...]
    cells: Callable[[Tensor], Tensor]


def seen(model: nn.Module, given: Inputs, processor: Any) -> dict[str, Seen]:
    """Return the grids of the floating point inputs, by their names.

    Patches are those of the model's configuration, up to 48 by 48; seconds come from the processor. An input whose
    dimensions are not those of images or sounds is one place.

    Args:
        model: the model.
        given: its inputs, of one sample.
        processor: a processor of transformers, or another object with a sampling rate; may be None.
    """
    return {name: _seen(model, x.detach(), name, given, processor) for name, x in given.carriers.items()}


def _seen(model: nn.Module, x: Tensor, name: str, given: Inputs, processor: Any) -> Seen:
    dims = given.dims[name]
    if UNKNOWN not in dims and {"height", "width"} <= set(dims):
        patch = _patch_size(model)
        sizes = x.shape[dims.index("height")], x.shape[dims.index("width")]
        block = tuple(-(-size // (patch * _SIDE)) * patch for size in sizes)
        pictures = [_color(one) for one in _images(x, dims)]
        called = FRAME if "frame" in dims and len(pictures) > 1 else IMAGE
        return _in_blocks(x, lambda v: _images(v, dims).sum(1), block, pictures, (IMAGE, called))
    if UNKNOWN not in dims and "time" in dims:
        bins = x.shape[dims.index("mel")] if "mel" in dims else 1
        block = -(-bins // _BANDS), -(-x.shape[dims.index("time")] // _STEPS)
        one = _seconds(processor, spectrogram="mel" in dims)
        seconds = None if one is None else one * block[1]
        return _in_blocks(x, lambda v: _sound(v, dims), block, [_gray(_sound(x, dims)[0])], (SOUND,) * 2, seconds)
    video = "video" in name
    counts = given.kwargs.get("video_grid_thw" if video else "image_grid_thw")
    if dims == ("patch", "feature") and isinstance(counts, Tensor) and int(counts.prod(1).sum()) == len(x):
        return _in_patches(x, counts.tolist(), _vision(model, "spatial_merge_size") or 1, model, video=video)
    return Seen((Grid(name, OTHER, 1, 1),), lambda v: v.sum().reshape(1))


def _in_blocks(
    x: Tensor,
    planes: Callable[[Tensor], Tensor],
    block: tuple[int, ...],
    pictures: Sequence[Tensor],
    called: tuple[str, str],
    seconds: float | None = None,
) -> Seen:
    """Return a grid of blocks for each plane that an input has, [planes, height, width].

    ``called`` are the kind of the grids, and what their names are made of.
    """

    def cells(values: Tensor) -> Tensor:
        found = planes(values)
        below, right = (-size % side for size, side in zip(found.shape[1:], block, strict=True))
        found = F.pad(found, (0, right, 0, below))
        return found.unflatten(2, (-1, block[1])).sum(3).unflatten(1, (-1, block[0])).sum(2).flatten()

    rows, columns = (-(-size // side) for size, side in zip(planes(x).shape[1:], block, strict=True))
    grids = [
        Grid(name, called[0], rows, columns, picture, seconds)
        for name, picture in zip(_numbered(called[1], len(pictures)), pictures, strict=True)
    ]
    return Seen(tuple(grids), cells)


def _numbered(kind: str, count: int) -> list[str]:
    return [kind] if count == 1 else [f"{kind} {number + 1}" for number in range(count)]


def _vision(model: nn.Module, name: str) -> int | None:
    """Return a number from the configuration of the model's vision part."""
    config = getattr(model, "config", None)
    for place in (getattr(config, "vision_config", None), config):
        found = getattr(place, name, None)
        if isinstance(found, (tuple, list)) and found:
            found = found[0]
        if isinstance(found, int):
            return found
    return None


def _patch_size(model: nn.Module) -> int:
    return _vision(model, "patch_size") or 16


def _seconds(processor: Any, *, spectrogram: bool) -> float | None:
    """Return the duration of one step of a sound, if the processor tells it."""
    reader = getattr(processor, "feature_extractor", processor)
    rate, hop = getattr(reader, "sampling_rate", None), getattr(reader, "hop_length", None)
    if not rate or (spectrogram and not hop):
        return None
    return (hop if spectrogram else 1) / rate


# ---- planes and pictures of them -------------------------------------------------------------------------------------


def _images(values: Tensor, dims: Dims) -> Tensor:
    """Return [images, channels, height, width]: samples, images and frames one after the other."""
    order = [*(p for p, dim in enumerate(dims) if dim not in ("channel", "height", "width"))]
    found = values.permute(*order, *(dims.index(dim) for dim in ("channel", "height", "width") if dim in dims))
    found = found if "channel" in dims else found.unsqueeze(-3)
    return found.reshape(-1, *found.shape[-3:])


def _sound(values: Tensor, dims: Dims) -> Tensor:
    """Return [1, mel bins, time], the highest bin first; a wave has one."""
    found = values.movedim(dims.index("time"), -1)
    rest = tuple(dim for dim in dims if dim != "time")
    if "mel" in rest:
        return found.movedim(rest.index("mel"), -2).flatten(0, -3).sum(0, keepdim=True).flip(1)
    return found.flatten(0, -2).sum(0)[None, None]


def _color(image: Tensor) -> Tensor:
    """Return an image as uint8, [height, width, 3] of three channels, else [height, width]."""
    return _stretched(image.movedim(0, -1) if len(image) == 3 else image.mean(0))


def _stretched(values: Tensor) -> Tensor:
    low, high = float(values.min()), float(values.max())
    return ((values.double() - low) * (255 / ((high - low) or 1.0))).round().to(torch.uint8).cpu()


def _gray(sound: Tensor) -> Tensor:
    """Return a spectrogram in gray, or a wave as its range at each step."""
    wide = min(_WIDE, sound.shape[1])
    parts = sound.double().tensor_split(wide, 1)
    if len(sound) > 1:
        return _stretched(torch.stack([part.mean(1) for part in parts], 1))
    most = float(sound.abs().max()) or 1.0
    heights = torch.linspace(1, -1, _HIGH, dtype=torch.float64, device=sound.device)[:, None]
    low, high = (torch.stack(ends)[None] / most for ends in zip(*(part.aminmax() for part in parts), strict=True))
    half = 1 / _HIGH
    return (((heights >= low - half) & (heights <= high + half)) * 255).to(torch.uint8).cpu()


# ---- images that are given as rows of patches ------------------------------------------------------------------------


def _in_patches(x: Tensor, sizes: Sequence[Sequence[int]], merge: int, model: nn.Module, *, video: bool) -> Seen:
    """Return the grids of images whose patches are rows, ``merge`` by ``merge`` neighbors one after the other.

    That is how the processors of Qwen2-VL and its kin write images down. A patch of a video is that of several frames.

    Args:
        x: the patches, [patches, features].
        sizes: of each image, in time, height and width, counted in patches.
        merge: how many neighbors at each side become one token.
        model: the model, for the size of a patch.
        video: whether these are videos.
    """
    grids, orders, first, side = list[Grid](), list[Tensor](), 0, _patch_size(model)
    names = _frames([time for time, *_ in sizes], x.shape[-1] // (3 * side * side)) if video else []
    for time, height, width in sizes:
        count = height * width
        for _ in range(time):
            # place[row, column] is the number of the patch there
            place = torch.arange(count).reshape(height // merge, width // merge, merge, merge)
            order = first + place.permute(0, 2, 1, 3).reshape(height, width)
            orders.append(order.flatten())
            grids.append(Grid("", IMAGE, height, width, _joined(x, order, side)))
            first += count
    named = [
        Grid(name, one.kind, one.rows, one.columns, one.picture)
        for name, one in zip(names or _numbered(IMAGE, len(grids)), grids, strict=True)
    ]
    where = torch.cat(orders)
    return Seen(tuple(named), lambda values: values.sum(-1)[where.to(values.device)])


def _frames(times: Sequence[int], each: int) -> list[str]:
    """Return names for the patches of videos in time, each of which is so many frames: "frames 1-2", "frames 3-4"."""
    before = [f"video {number + 1}, " if len(times) > 1 else "" for number in range(len(times))]
    return [
        f"{video}frames {each * at + 1}-{each * (at + 1)}" if each > 1 else f"{video}frame {at + 1}"
        for video, time in zip(before, times, strict=True)
        for at in range(time)
    ]


def _joined(x: Tensor, order: Tensor, side: int) -> Tensor | None:
    """Return the picture of patches [channels, times, side, side], the first in time; None if they are others."""
    features = x.shape[-1]
    if features % (3 * side * side):
        return None
    patches = x[order.to(x.device)].reshape(*order.shape, 3, -1, side, side)[:, :, :, 0]
    return _color(patches.permute(2, 0, 3, 1, 4).reshape(3, order.shape[0] * side, order.shape[1] * side))


def cells_of(found: Mapping[str, Seen]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the functions to the relevance of places, by the names of inputs."""
    return {name: one.cells for name, one in found.items()}
