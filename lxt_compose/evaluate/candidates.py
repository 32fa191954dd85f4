"""Candidates of tuning: composites by name, and grids of a preset's arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import nn

from .. import presets
from ..canonizers import MergeBatchNorm
from ..composite import Composite
from ..ops.module_types import BATCH_NORMS, CONVOLUTIONS


@dataclass(frozen=True, eq=False)
class Candidate:
    """A composite that is tried: its name, the name of the preset or function that built it, and the arguments."""

    name: str
    composite: Composite
    builder: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


class Grid:
    """All combinations of the arguments of a preset, or of any function that returns a composite.

    For example ``Grid("gamma_vit", conv_gamma=[0.1, 0.25, 1.0], linear_gamma=[0.0, 0.05])``: six composites. For other
    kinds of layers write the function: ``Grid(lambda early, late: Composite({"stem.*": Gamma(early), ...}), ...)``.

    Args:
        build: the name of a preset, or a function that returns a composite.
        values: its arguments: a list holds the values to try, anything else is the same in all combinations.

    Raises:
        TypeError: `build` is of a wrong kind, or returns no composite.
        ValueError: a list is empty, there is no such preset, or an argument is out of its range.
    """

    def __init__(self, build: str | Callable[..., Composite], **values: Any) -> None:
        if not isinstance(build, str) and not callable(build):
            raise TypeError(f"a grid is of a preset's name or a function that returns a Composite, got {build!r}")
        if isinstance(build, str):
            presets.find(build)
        empty = [name for name, tried in values.items() if isinstance(tried, list) and not tried]
        if empty:
            raise ValueError(f"the list of what is tried for {empty[0]} is empty")
        self.build, self.values = build, values

    @property
    def builder(self) -> str:
        """The name of the preset or function that builds the composites."""
        return self.build if isinstance(self.build, str) else str(getattr(self.build, "__name__", "build"))

    def __len__(self) -> int:
        count = 1
        for tried in self._lists().values():
            count *= len(tried)
        return count

    def __repr__(self) -> str:
        return f"Grid({', '.join([self.builder, *(f'{name}={tried!r}' for name, tried in self.values.items())])})"

    def candidates(self) -> list[Candidate]:
        """Return the composites, the last argument changing first."""
        lists = self._lists()
        return [self._candidate(dict(zip(lists, chosen, strict=True))) for chosen in product(*lists.values())]

    def _lists(self) -> dict[str, list[Any]]:
        return {name: tried if isinstance(tried, list) else [tried] for name, tried in self.values.items()}

    def _candidate(self, arguments: dict[str, Any]) -> Candidate:
        shown = {name: value for name, value in arguments.items() if isinstance(self.values[name], list)}
        told = ", ".join(f"{name}={_shown(value)}" for name, value in shown.items())
        name = f"{self.builder}({told})" if told else self.builder
        try:
            if isinstance(self.build, str):
                composite = presets.get(self.build, **arguments)
            else:
                composite = self.build(**arguments)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name} cannot be built: {error}") from error
        if not isinstance(composite, Composite):
            raise TypeError(f"{name} must return a Composite, got {type(composite).__name__}")
        return Candidate(name, composite, self.builder, shown)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"tensor{list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def read_candidates(model: nn.Module, given: Any) -> list[Candidate]:
    """Return the candidates.

    Args:
        model: the model, for the default candidates.
        given: None, a preset's name, a composite, a :class:`Grid`, several of these in a list, or composites and
            presets by names of the user's own.

    Raises:
        TypeError: the candidates are something else.
        ValueError: there are no candidates, or two have the same name.
    """
    if given is None:
        given = usual_candidates(model)
    if isinstance(given, (str, Composite, Grid)):
        given = [given]
    if isinstance(given, Mapping):
        found = [_named(str(name), value) for name, value in given.items()]
    elif isinstance(given, Iterable):
        found = [candidate for value in given for candidate in _read(value)]
    else:
        raise _wrong(given)
    names = [candidate.name for candidate in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not found:
        raise ValueError("there is nothing to try: candidates is empty")
    if twice:
        raise ValueError(f"two candidates are called {twice[0]!r}: pass them in a dictionary, by names of your own")
    return found


def _read(value: Any) -> list[Candidate]:
    if isinstance(value, Candidate):
        return [value]
    if isinstance(value, Grid):
        return value.candidates()
    return [_named(value if isinstance(value, str) else repr(value), value)]


def _named(name: str, value: Any) -> Candidate:
    if isinstance(value, Composite):
        return Candidate(name, value, name)
    if isinstance(value, str):
        return Candidate(name, presets.get(value), name)
    raise _wrong(value)


def _wrong(value: Any) -> TypeError:
    return TypeError(
        f"what is tried is a preset's name, a Composite or a Grid, a list of these, or a dictionary of composites by "
        f"name; got {value!r}"
    )


def usual_candidates(model: nn.Module) -> list[str | Candidate | Grid]:
    """Return the default candidates: presets, and gamma for each kind of layer that the model has.

    Presets for CNNs merge batch norms into layers.
    """
    found: list[str | Candidate | Grid] = ["attnlrp", "cp_lrp", "res_lrp"]
    if any(isinstance(module, (nn.RNNBase, nn.RNNCellBase)) for module in model.modules()):
        found.append(Grid("gamma_rnn", linear_gamma=[0.01, 0.03, 0.1]))
    if not any(isinstance(module, CONVOLUTIONS) for module in model.modules()):
        return [*found, Grid("gamma_vit", linear_gamma=[0.05, 0.1, 0.25, 1.0])]
    norms = any(isinstance(module, BATCH_NORMS) for module in model.modules())
    merged: dict[str, Any] = {"canonizers": (MergeBatchNorm(),)} if norms else {}
    found += [Candidate(name, presets.get(name, **merged), name) for name in ("epsilon_plus", "epsilon_alpha2_beta1")]
    return [*found, Grid("gamma_vit", conv_gamma=[0.1, 0.25, 1.0], linear_gamma=[0.0, 0.05, 0.25], **merged)]
