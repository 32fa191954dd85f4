"""Units of a model: found by name, and selected in their tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.axes import BATCH, UNKNOWN, Dims, place_of, unit_place
from ..attribution.latent import INPUT, Layer, find_layers
from ..errors import AttributionError, MatchError
from .dictionary import Dictionary, DictionaryUnits
from .keys import Part, UnitKey, indices, read_key

HEAD = "head"
_HEADS = ".heads"


@dataclass(frozen=True)
class Place:
    """A place of units: the tensor at one side of a module, or its codes.

    ``call`` is the number of the module's call, None if not given.
    """

    name: str
    module: nn.Module
    side: str
    call: int | None = None
    dictionary: Dictionary | None = None


@dataclass(frozen=True)
class Layout:
    """The dimensions of a tensor: their names, which one counts units, and how many consecutive units are copies."""

    shape: torch.Size
    dims: Dims
    unit: int
    groups: int = 1

    @staticmethod
    def of(name: str, shape: torch.Size, dims: Dims, groups: int = 1) -> Layout:
        """Return the layout of a tensor.

        Raises:
            AttributionError: it is unknown which dimension counts units.
        """
        if UNKNOWN in dims:
            raise AttributionError(
                f"it is not known which dimension of {name}, of shape {list(shape)}, counts units and which samples: "
                f"name a module that knows (a layer, a norm), or give dims={{{name!r}: 'batch token feature'}}"
            )
        return Layout(shape, dims, dims.index(HEAD) if HEAD in dims else unit_place(dims), groups)

    @property
    def units(self) -> int:
        """The number of units."""
        return self.shape[self.unit] // self.groups

    @property
    def batch(self) -> int | None:
        """The dimension that counts samples."""
        return place_of(self.dims, BATCH)

    @property
    def places(self) -> list[int]:
        """The dimensions that count places, such as tokens or pixels, but not the features of one head."""
        rest = [d for d in range(len(self.shape)) if d not in (self.unit, self.batch)]
        return [d for d in rest if HEAD not in self.dims or self.dims[d] != "feature"]

    def along(self, values: Tensor, dim: int) -> Tensor:
        """Return a vector as a tensor that broadcasts along one dimension."""
        return values.reshape([-1 if d == dim else 1 for d in range(len(self.shape))])

    def per_unit(self, x: Tensor) -> Tensor:
        """Return [batch, units, *places]: copies of a unit and the features of a head are summed."""
        if self.groups > 1:
            x = x.unflatten(self.unit, (self.units, self.groups)).sum(self.unit + 1)
        batch, places = self.batch, self.places
        gone = [d for d in range(len(self.shape)) if d not in (batch, self.unit, *places)]
        kept = [d for d in range(len(self.shape)) if d not in gone]
        x = x.sum(gone) if gone else x
        order = [kept.index(d) for d in ([] if batch is None else [batch]) + [self.unit, *places]]
        found = x.permute(order)
        return found if batch is not None else found[None]


@dataclass(frozen=True)
class Units:
    """Some units of one place: their numbers and positions, as given."""

    text: str
    place: Place
    index: tuple[Part, ...] | None = None
    at: tuple[Part, ...] | None = None

    def __str__(self) -> str:
        return self.text

    def numbers(self, layout: Layout) -> list[int]:
        """Return the numbers of the units.

        Raises:
            IndexError: there is no such unit.
        """
        return indices(self.index, layout.units, f"the units of {self.place.name}")

    def mask(self, layout: Layout, device: torch.device | None = None, *, skip_absent: bool = False) -> Tensor:
        """Return a mask of these units: a boolean tensor that broadcasts against the place's tensor.

        Args:
            layout: of the tensor.
            device: that of the mask.
            skip_absent: leave out places that the tensor does not have, instead of raising.

        Raises:
            IndexError: there is no such unit or place.
            ValueError: more dimensions of places were given than there are.
        """
        whole = torch.zeros(layout.units, dtype=torch.bool, device=device)
        whole[self.numbers(layout)] = True
        found = layout.along(whole.repeat_interleave(layout.groups), layout.unit)
        dims = layout.places
        if self.at is not None and len(self.at) > len(dims):
            names = " ".join(layout.dims[d] for d in dims) or "none"
            raise ValueError(
                f"{self.text!r} gives {len(self.at)} places, but {self.place.name} has dimensions: {names}"
            )
        for dim, part in zip(dims, self.at or (), strict=False):
            size = layout.shape[dim]
            real = torch.zeros(size, dtype=torch.bool, device=device)
            if not (skip_absent and isinstance(part, int) and not -size <= part < size):
                real[indices((part,), size, f"dimension {layout.dims[dim]!r} of {self.place.name}")] = True
            found = found & layout.along(real, dim)
        return found


def find_units(model: nn.Module, keys: Any) -> list[Units]:
    """Return the units that match the keys.

    Args:
        model: any module.
        keys: one key or several. A text ``MODULES[:SIDE][#CALL][[UNITS]][@PLACES]``: a dotted name or glob; the side
            ``input``, or ``query``, ``key``, ``value``, ``heads`` (also ``.heads``) of the attention that runs inside;
            the call, if the module runs several times; the numbers and ranges of units; the places, such as
            tokens (``@-1``) or rows and columns (``@0:2,4``). A module class or ``where(...)`` stands for all units of
            such modules. A :class:`Dictionary`, or some of its units.

    Raises:
        TypeError: a key is of a wrong kind.
        ValueError: a text cannot be read.
        MatchError: a name matches no module.
    """
    several = isinstance(keys, Iterable) and not isinstance(keys, (str, type, Dictionary))
    if isinstance(keys, tuple) and keys and all(isinstance(kind, type) for kind in keys):
        several = False
    found = [units for key in (keys if several else (keys,)) for units in _found(model, key)]
    if not found:
        raise ValueError("no units were given")
    return found


def _found(model: nn.Module, key: Any) -> list[Units]:
    if isinstance(key, Units):
        return [key]
    if isinstance(key, Dictionary):
        key = DictionaryUnits(key, None)
    if isinstance(key, DictionaryUnits):
        return _named(model, key.key, key.dictionary)
    if isinstance(key, str):
        return _named(model, read_key(key), None)
    return [Units(layer.name, Place(layer.name, layer.module, "")) for layer in find_layers(model, (key,))]


def _named(model: nn.Module, key: UnitKey, dictionary: Dictionary | None) -> list[Units]:
    """Return the units of a text: one entry for each module that its name matches."""
    side, layers = _modules(model, key)
    found = []
    for layer in layers:
        where = layer.name + (f":{side}" if side else "") + ("" if key.call is None else f"#{key.call}")
        place = Place(where, layer.module, side, key.call, dictionary)
        found.append(Units(_text(where, key), place, key.index, key.at))
    return found


def _modules(model: nn.Module, key: UnitKey) -> tuple[str, list[Layer]]:
    """Return the side, and the modules; ``attn.heads`` is ``attn:heads`` unless there is a module of this name."""
    if key.pattern == INPUT:
        raise ValueError(f"{key.text!r} names no module")
    try:
        return key.side, find_layers(model, key.pattern)
    except MatchError:
        if not key.pattern.endswith(_HEADS) or key.side:
            raise
        return HEAD + "s", find_layers(model, key.pattern.removesuffix(_HEADS))


def _text(where: str, key: UnitKey) -> str:
    index = "" if key.index is None else f"[{', '.join(map(_part, key.index))}]"
    at = "" if key.at is None else f"@{','.join(map(_part, key.at))}"
    return where + index + at


def _part(part: Part) -> str:
    if isinstance(part, int):
        return str(part)
    ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
    return ":".join(ends) + ("" if part.step is None else f":{part.step}")
