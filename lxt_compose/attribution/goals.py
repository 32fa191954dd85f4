"""Several targets at once: their names, and the number that is explained for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .axes import BATCH, place_of
from .inputs import Inputs
from .targets import HELP, Chosen, Goal, choose, chosen_by, read_target


@dataclass(frozen=True)
class Goals:
    """The targets, each for all samples, and their ``names``; without names if there is one target for each sample."""

    each: tuple[Goal, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.each)

    def part(self, samples: slice) -> Goals:
        """Return the targets of some of the samples."""
        return replace(self, each=tuple(goal.part(samples) for goal in self.each))

    @property
    def target(self) -> Any:
        """The target in the form that :func:`attribute` takes."""
        each = [goal.target for goal in self.each]
        if len(each) == 1 and not self.names:
            return each[0]
        by_name = dict(zip(self.names, each, strict=True))
        return by_name if len(by_name) == len(each) else each


def read_targets(target: Any, count: int) -> Goals:
    """Check the targets for `count` samples.

    Raises:
        TypeError: one is of a wrong kind.
        ValueError: they are not one per sample, and it is not clear that there are several for each.
    """
    if isinstance(target, Mapping):
        if not target or any(isinstance(value, Mapping) for value in target.values()):
            raise ValueError(f"a dictionary of targets holds one for each name, got {target!r}; {HELP}")
        return Goals(tuple(read_target(value, count) for value in target.values()), tuple(map(str, target)))
    several = _listed(target)
    if count == 1 and several is not None and len(several) > 1:
        return Goals(tuple(read_target(value, 1) for value in several), tuple(map(_called, several)))
    return Goals((read_target(target, count),))


def for_every_sample(target: Any, samples: int | None) -> Any:
    """Return a target that means the same in a batch of any size: of a list each one is explained in every sample.

    Args:
        target: as for :func:`read_targets`.
        samples: how many samples there are in all, if that is known.

    Raises:
        ValueError: the list may hold one target for each sample, or two of the targets have the same name.
    """
    several = _listed(target)
    if several is None or not several:
        return target
    if len(several) == 1:
        return several[0]
    if len(several) == samples:
        raise ValueError(
            f"{samples} targets for {samples} samples could be one for each: pass target_of=, a function from a batch "
            f"to its targets, or a dictionary of targets that are explained in every sample"
        )
    named = dict(zip(map(_called, several), several, strict=True))
    if len(named) < len(several):
        raise ValueError(f"targets for each sample need names of their own: pass a dictionary instead of {target!r}")
    return named


def _listed(target: Any) -> list[Any] | None:
    """Return a list of targets, or the integers of a tensor of one dimension; None for anything else."""
    if isinstance(target, Tensor) or (hasattr(target, "__array__") and hasattr(target, "shape")):
        values = torch.as_tensor(target)
        if values.dim() == 2 and values.shape[1] != 2:
            raise ValueError(
                f"a tensor of targets of shape {list(values.shape)} could be meant in several ways; for several "
                f"targets for each sample pass a dictionary, such as {{'first': top[:, 0], 'second': top[:, 1]}}"
            )
        integers = values.dim() == 1 and not values.is_floating_point() and values.dtype != torch.bool
        return values.tolist() if integers else None
    return target if isinstance(target, list) else None


def _called(target: Any) -> str:
    """Return a name for a target that has none."""
    if target is None:
        return "arg-max"
    if isinstance(target, tuple):
        return " - ".join(map(_called, target))
    return str(getattr(target, "__name__", "function")) if callable(target) else str(target)


def asked_inside(goals: Goals, ask: Callable[[Callable[[Any], Tensor], Any], Tensor]) -> Callable[[Any], Any] | None:
    """Return a function of the model's output that runs as a part of the model, for target functions; else None.

    Args:
        goals: the targets.
        ask: calls a target function on an output.
    """
    functions = [goal.function for goal in goals.each]
    if len(functions) == 1 and functions[0] is not None:
        return lambda output: ask(functions[0], output)  # type: ignore[arg-type]
    if not any(functions):
        return None
    return lambda output: (output, [function and ask(function, output) for function in functions])


def choose_each(goals: Goals, output: Any, model: nn.Module, given: Inputs, *, times_output: bool) -> list[Chosen]:
    """Return what is explained of an output for each target.

    The output is that of :func:`asked_inside`, if that gave a function.

    Raises:
        TypeError: the output, or what a target function returned, holds no number that could be explained.
        ValueError: an index is out of range, or shapes do not fit.
        NotFiniteError: what is explained is not finite.
    """
    functions = [goal.function for goal in goals.each]
    values: list[Any] = [output] * len(functions)
    if len(functions) > 1 and any(functions):
        output, values = output
    found = []
    for goal, value in zip(goals.each, values, strict=True):
        if goal.function is not None:
            found.append(chosen_by(lambda value: value, value, count=given.count, times_output=times_output))
        else:
            found.append(_chosen(goal, output, model, given, times_output=times_output))
    return found


def _chosen(goal: Goal, output: Any, model: nn.Module, given: Inputs, *, times_output: bool = False) -> Chosen:
    return choose(
        goal,
        output,
        model,
        count=given.count,
        mask=given.mask,
        times_output=times_output,
        asked_at=given.asked_at(model),
        alone=all(place_of(given.dims[name], BATCH) is None for name in (*given.carriers, *given.ids)),
    )


# ---- rows: each sample once for each of its targets ------------------------------------------------------------------


def choose_rows(
    goals: Goals, rows: Tensor, output: Any, model: nn.Module, given: Inputs
) -> tuple[Chosen, list[Tensor | None]]:
    """Return what is explained of the output for some rows, and the index that each target has for all of them.

    Args:
        goals: the targets; the functions have not run.
        rows: their numbers; row ``i`` is the sample ``i // len(goals)`` with the target ``i % len(goals)``.
        output: of the model for the rows.
        model: the model.
        given: the inputs of the rows.
    """
    samples, turns = rows // len(goals), rows % len(goals)
    found = [_chosen(goal.rows(samples), output, model, given) for goal in goals.each]
    targets = [chosen.target for chosen in found]
    if len(found) == 1:
        return found[0], targets
    slots: dict[int, tuple[Tensor, Tensor]] = {}
    for turn, chosen in enumerate(found):
        for source, slot in chosen.seeds:
            own = (turns == turn).to(slot.device).reshape(-1, *[1] * (slot.dim() - 1))
            before = slots.get(id(source), (source, torch.zeros_like(slot)))[1]
            slots[id(source)] = source, before + slot * own
    value = torch.stack([chosen.value for chosen in found])[turns, torch.arange(len(rows))]
    return Chosen(value, None, list(slots.values())), targets
