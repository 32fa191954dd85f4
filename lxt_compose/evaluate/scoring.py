"""Scores of explanations: one number for each sample; more is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution import Attribution
from ..attribution.axes import summed
from ..attribution.goals import Goals
from ..attribution.inputs import Inputs
from .flipping import curve_of, fractions_of
from .occlusion import effects_of
from .probe import Probe, check_count
from .rank import correlation
from .removal import Removal

Score = Callable[[Attribution, Tensor], Any]
"""Maps an explanation of some samples and their numbers [n] to a value for each, [n]; more is better."""
SCORES: dict[str, str] = {
    "gain": "the symmetric relevance gain, LeRF area less MoRF area (Bluecher et al. 2024)",
    "insertion": "the area under the curve when the most relevant is put in first, the LeRF area (Petsiuk et al. 2018)",
    "deletion": "the area when it is removed first, with a minus: the MoRF area (Samek et al. 2017)",
    "leave_one_out": "the rank correlation with the effect of leaving out each part alone, 0 where one is constant",
}
"""The scores by name, of which more is better. A gain takes 2 x steps forward passes for each candidate and sample."""
_MOST_STEPS = 32


@dataclass(frozen=True)
class Asked:
    """How explanations are scored; the arguments of :func:`~lxt_compose.evaluate.tune` of the same names.

    ``size`` is the number of forward passes at a time.
    """

    score: str | Score
    size: int
    baseline: Any = "zero"
    patch: Any = None
    steps: int | None = None
    input: str | None = None

    def __post_init__(self) -> None:
        check_count("batch_size", self.size)
        if self.steps is not None:
            check_count("steps", self.steps)
        if not callable(self.score) and self.score not in SCORES:
            raise ValueError(
                f"score must be one of {', '.join(SCORES)}, or a function of an Attribution and the numbers of its "
                f"samples that returns a value for each, got {self.score!r}"
            )

    @property
    def name(self) -> str:
        """The name of the score."""
        return self.score if isinstance(self.score, str) else str(getattr(self.score, "__name__", "score"))


def read_asked(score: str | Score, size: int, removing: Mapping[str, Any]) -> Asked:
    """Return how explanations are scored.

    Raises:
        TypeError: there is no such argument.
        ValueError: one is out of its range.
    """
    known = [field.name for field in fields(Asked) if field.name not in ("score", "size")]
    unknown = [name for name in removing if name not in known]
    if unknown:
        raise TypeError(f"tune() has no argument {unknown[0]!r}; of how parts are removed it takes {', '.join(known)}")
    return Asked(score, size, **removing)


class Judge:
    """Scores explanations of a batch of samples.

    Args:
        model: any module.
        given: the inputs of the batch.
        goals: the targets of the batch.
        numbers: of the samples, among all, [n].
        asked: the settings.
    """

    def __init__(self, model: nn.Module, given: Inputs, goals: Goals, numbers: Tensor, asked: Asked) -> None:
        self.asked, self.given, self.numbers = asked, given, numbers
        names = list({**given.ids, **given.carriers}) if asked.input is None else [asked.input]
        names = names[:1] if callable(asked.score) else names
        self._parts = [_Part(Probe(model, given, goals, asked.size, input=name), asked) for name in names]
        self.goals = self._parts[0].probe.goals
        """The targets, an arg-max as the index that it is for the unchanged samples."""
        self.turns = len(goals)

    def of(self, found: Attribution) -> Tensor:
        """Return the score of each sample, [n]: the mean over its targets, and over inputs if there are several.

        Raises:
            ValueError: the user's function does not return a finite number for each.
        """
        rows = self._asked(found) if callable(self.asked.score) else self._of_parts(found)
        return rows.reshape(self.given.count, self.turns).mean(1)

    def _of_parts(self, found: Attribution) -> Tensor:
        return torch.stack([part.of(found) for part in self._parts]).mean(0)

    def _asked(self, found: Attribution) -> Tensor:
        assert callable(self.asked.score)
        rows = self.numbers.repeat_interleave(self.turns)
        values = torch.as_tensor(self.asked.score(found, rows)).detach().cpu().double()
        if values.shape != rows.shape or not values.isfinite().all():
            raise ValueError(
                f"the score {self.asked.name} must return a finite number for each of {len(rows)} samples, got "
                f"{values.tolist() if values.numel() < 8 else f'a tensor of shape {list(values.shape)}'}"
            )
        return values


class _Part:
    """One input whose parts are removed."""

    def __init__(self, probe: Probe, asked: Asked) -> None:
        self.probe, self._score = probe, asked.score
        if callable(asked.score):
            return
        self._removal = Removal(probe, asked.baseline, asked.patch)
        self._steps = min(self._removal.count, _MOST_STEPS) if asked.steps is None else asked.steps
        self._effects = effects_of(probe, self._removal) if asked.score == "leave_one_out" else None

    def of(self, found: Attribution) -> Tensor:
        """Return the score of each row."""
        name = self.probe.name
        values = self._removal.scores_of(summed(found.relevances[name], found.dims_of(name), name))
        if self._effects is not None:
            return correlation(values, self._effects, mask=self._removal.real()).nan_to_num()
        if self._score == "insertion":
            return self._area(values)
        removed_first = self._area(-values)
        return -removed_first if self._score == "deletion" else self._area(values) - removed_first

    def _area(self, values: Tensor) -> Tensor:
        curve = curve_of(self.probe, self._removal, values, self._steps)
        return torch.trapezoid(curve, fractions_of(self._steps))
