"""Interventions: units are scaled, shifted, held, or set to their values on other inputs, while a model runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.failures import telling
from ..attribution.inputs import read_inputs
from ..attribution.logits import per_class
from ..errors import RegistrationError
from ..torch_internals import in_backward
from .notebooks import html_of
from .passes import missing
from .units import Layout, Place, Units, find_units
from .visits import Visit, Visits

Change = Callable[[Tensor, Layout, Units, Visit], Tensor]
"""Maps the tensor of a place to new values; they are used for the units only."""


class Intervention:
    """Units that are changed in every forward pass, from now until :meth:`remove`; a context manager.

    Made by :func:`steer`, :func:`ablate` and :func:`patch`. Everything else that the model computes stays
    bit-identical, and removal leaves no trace. Several may be on a model at once, and act in the order in which they
    were made. Places are counted in the tensor of each call: under ``generate`` with a cache, a call after the first
    one holds one token.

    Args:
        model: any module.
        units: see :func:`find_units`.
        change: gives their new values.
        what: describes the change, for the repr.
    """

    def __init__(self, model: nn.Module, units: Any, change: Change, what: str) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"interventions are made on a torch.nn.Module, got {type(model).__name__}")
        self.model, self.units = model, find_units(model, units)
        self._change, self._what = change, what
        self._met: set[Place] = set()
        self._ran = 0
        self._visits = Visits(model, [each.place for each in self.units], self._look)
        self._visits.__enter__()
        self._counted = model.register_forward_pre_hook(self._count)
        self.active = True

    def _count(self, *_: object) -> None:
        self._ran += 1

    def _look(self, visit: Visit) -> Tensor | None:
        place, x = visit.place, visit.tensor
        if place.call is not None and in_backward():
            raise RegistrationError(
                f"{place.name} is recomputed by activation checkpointing, where calls of a module are not told apart: "
                f"name all of its calls, or switch checkpointing off"
            )
        self._met.add(place)
        layout = self._visits.layout(visit)
        for each in self.units:
            if each.place == place:
                mask = each.mask(layout, x.device, skip_absent=True)
                x = torch.where(mask, self._change(x, layout, each, visit), x)
        return x

    def remove(self) -> None:
        """Take the intervention off the model; calling it again does nothing."""
        self.active = False
        self._visits.close()
        self._counted.remove()

    def __enter__(self) -> Intervention:
        if not self.active:
            raise RegistrationError("this intervention was removed; make a new one")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
        for place in {each.place: None for each in self.units}:
            if kind is None and self._ran and place not in self._met:
                warnings.warn(f"nothing was changed at {missing(place)}", stacklevel=2)

    def __repr__(self) -> str:
        units = ", ".join(map(str, self.units[:3])) + (", ..." if len(self.units) > 3 else "")
        state = "active" if self.active else "removed"
        return f"<Intervention on {type(self.model).__name__} ({state}): {units} {self._what}>"


def steer(model: nn.Module, units: Any, *, scale: float | Tensor = 1.0, add: float | Tensor = 0.0) -> Intervention:
    """Change units to ``scale * x + add`` while the model runs.

    Args:
        model: any module.
        units: see :func:`find_units`; for a direction or a feature a :class:`Dictionary`.
        scale: a number, or a tensor with one for each unit that is named (in their order).
        add: the same; a vector for all features of a layer steers along it.

    Raises:
        TypeError: the model is no module.
        MatchError: a name matches no module.
        ValueError: (in the forward pass) a tensor has another number of entries than there are units.
    """

    def changed(x: Tensor, layout: Layout, of: Units, visit: Visit) -> Tensor:
        return x * _spread(scale, x, layout, of) + _spread(add, x, layout, of)

    return Intervention(model, units, changed, f"become {_said(scale)} * x + {_said(add)}")


def ablate(model: nn.Module, units: Any, *, to: float | str | Tensor = 0.0) -> Intervention:
    """Hold units at a constant while the model runs.

    Args:
        model: any module.
        units: see :func:`find_units`.
        to: the constant: 0; a tensor with one for each unit; or ``"mean"``: the mean of each unit over the samples and
            places of the same call.

    Raises:
        TypeError: the model is no module.
        ValueError: ``to`` is an unknown word.
        MatchError: a name matches no module.
    """
    if isinstance(to, str) and to != "mean":
        raise ValueError(f"units are held at a number, a tensor or their 'mean', got to={to!r}")

    def changed(x: Tensor, layout: Layout, of: Units, visit: Visit) -> Tensor:
        if isinstance(to, str):
            dims = [d for d in (layout.batch, *layout.places) if d is not None]
            return x.mean(dims, keepdim=True).expand_as(x)
        return torch.zeros_like(x) + _spread(to, x, layout, of)

    return Intervention(model, units, changed, f"become {_said(to)}")


def patch(model: nn.Module, units: Any, values: Mapping[str, Sequence[Tensor]]) -> Intervention:
    """Set units to their values on other inputs: activation patching.

    Args:
        model: any module.
        units: see :func:`find_units`; the places must be among those that were recorded.
        values: what :func:`record` returned, for inputs of the same shapes.

    Raises:
        KeyError: a place was not recorded.
        ValueError: (in the forward pass) shapes differ, or the place ran more often than it was recorded.

    Source: Vig et al. 2020; Meng et al. 2022 (causal tracing), section 2.
    """
    found = find_units(model, units)
    for each in found:
        if each.place.name not in values:
            raise KeyError(f"no values of {each.place.name} were recorded; there are {', '.join(values)}")

    def changed(x: Tensor, layout: Layout, of: Units, visit: Visit) -> Tensor:
        kept = values[of.place.name]
        number = 0 if of.place.call is not None else visit.number - 1
        if number >= len(kept) or kept[number].shape != x.shape:
            shapes = ", ".join(str(list(k.shape)) for k in kept)
            raise ValueError(
                f"call {number + 1} of {of.place.name} has the shape {list(x.shape)}, but recorded were {shapes}"
            )
        return kept[number].to(x)

    return Intervention(model, found, changed, "become what they were on other inputs")


def record(model: nn.Module, inputs: Any, units: Any) -> dict[str, list[Tensor]]:
    """Return the tensors at places, by their names: one for each call of the module, without a graph.

    Args:
        model: any module.
        inputs: as for :func:`~lxt_compose.attribute`.
        units: see :func:`find_units`; of their places the whole tensors are returned.

    Raises:
        AttributionError: the model failed on the inputs.
    """
    found: dict[str, list[Tensor]] = {}
    places = list(dict.fromkeys(each.place for each in find_units(model, units)))

    def keep(visit: Visit) -> None:
        found.setdefault(visit.place.name, []).append(visit.tensor.detach().clone())

    given = read_inputs(model, inputs).copied()
    with torch.no_grad(), Visits(model, places, keep), telling(model, given):
        model(*given.args, **given.kwargs)
    return found


@dataclass(frozen=True, eq=False)
class Effect:
    """The effect of an intervention on the logits: ``before`` and ``after`` [samples, classes]."""

    before: Tensor
    after: Tensor

    @property
    def change(self) -> Tensor:
        """After minus before, [samples, classes]."""
        return self.after - self.before

    def top(self, k: int = 5, sample: int | None = None) -> list[tuple[int, float]]:
        """Return the k classes whose logit changes most, with the change, averaged over samples or of one."""
        change = self.change.mean(0) if sample is None else self.change[sample]
        order = change.abs().topk(min(k, len(change))).indices.tolist()
        return [(index, float(change[index])) for index in order]

    def heatmap(self, names: Sequence[str] | None = None) -> Any:
        """Return a picture: bars of the change of each logit, a mean over samples.

        Args:
            names: the names of the classes; by default their numbers.
        """
        from ..heatmap import bars

        called = [f"class {number}" for number in range(self.change.shape[1])] if names is None else list(names)
        return bars(called, self.change.mean(0), titles="change of the logits, mean over samples")

    def _repr_html_(self) -> str:
        return html_of(self, self.heatmap)

    def __repr__(self) -> str:
        flipped = int((self.before.argmax(1) != self.after.argmax(1)).sum())
        top = ", ".join(f"{index}: {change:+.3g}" for index, change in self.top(3))
        return f"<Effect on {len(self.before)} samples: the answer changes in {flipped}; logits {top}>"


def effect(
    model: nn.Module, inputs: Any, units: Any, *, scale: float | Tensor = 0.0, add: float | Tensor = 0.0
) -> Effect:
    """Return the effect of :func:`steer` (by default: setting units to 0) on the logits of the model's answer.

    Args:
        model: any module.
        inputs: as for :func:`~lxt_compose.attribute`.
        units: see :func:`find_units`.
        scale: see :func:`steer`.
        add: the same.

    Raises:
        ValueError: it is not clear which position of the output is the answer.
    """
    given = read_inputs(model, inputs)

    def logits() -> Tensor:
        batch = given.copied()
        with torch.no_grad(), telling(model, batch):
            output = model(*batch.args, **batch.kwargs)
        return per_class(output, model, given.count, given.mask, given.asked_at(model)).detach().cpu()

    before = logits()
    with steer(model, units, scale=scale, add=add):
        return Effect(before, logits())


def _spread(value: float | Tensor, x: Tensor, layout: Layout, units: Units) -> float | Tensor:
    """Return a number, or one for each unit, such that it broadcasts against the tensor of the place."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value if not isinstance(value, Tensor) else value.to(x)
    numbers = units.numbers(layout)
    if value.shape != (len(numbers),):
        raise ValueError(
            f"{units} are {len(numbers)} units of {units.place.name}, but the tensor given for them has the shape "
            f"{list(value.shape)}"
        )
    whole = torch.zeros(layout.units, dtype=x.dtype, device=x.device)
    whole[numbers] = value.detach().to(x)
    return layout.along(whole.repeat_interleave(layout.groups), layout.unit)


def _said(value: float | str | Tensor) -> str:
    return f"tensor{list(value.shape)}" if isinstance(value, Tensor) else str(value)
