"""Tuning: candidates (presets, values of gamma) are scored on a user's samples, and chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution import Attribution
from ..attribution.entry import check_traced, explained
from ..attribution.goals import Goals, read_targets
from ..attribution.graphs import Graphs
from ..attribution.inputs import Inputs, read_inputs
from ..attribution.pipelines import unpacked
from ..attribution.run import Run, statistics_kept
from ..composite import Composite
from ..errors import AttributionError, CompositeError
from ..extras import needed
from ..tracing import Kept
from .candidates import Candidate, read_candidates
from .probe import check_count
from .scoring import Asked, Judge, Score, read_asked
from .tuned import Tuning

_AT_A_TIME = 32
_SHAPES = 3
"""For how many shapes of batches graphs are kept for each candidate."""


def tune(
    model: nn.Module | Any,
    inputs: Any,
    candidates: Any = None,
    *,
    target: Any = None,
    score: str | Score = "gain",
    folds: int = 5,
    trials: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = _AT_A_TIME,
    dims: Any = None,
    progress: bool = False,
    traced: bool | str = False,
    **removing: Any,
) -> Tuning:
    """Find the composite whose explanations of a model are the most faithful on your samples.

    Every candidate gets a score for each sample; the best has the largest mean. Its expected score on other samples
    comes from cross-validation: each fold of the samples is scored with the candidate that is the best on the others.

    Args:
        model: any module in ``eval()`` mode, which is left as it was; or a pipeline of transformers.
        inputs: what :func:`attribute` takes; or a generator or iterator of such, batch by batch.
        candidates: names of presets, :class:`Composite` and :class:`Grid` objects in a list; or composites by names of
            your own. None: presets, and gamma for each kind of layer that the model has.
        target: what :func:`attribute` takes; for an iterator of batches also an iterator of targets.
        score: of :data:`SCORES`; or a function of an :class:`Attribution` and the numbers [n] of its samples that
            returns a value for each; more is better.
        folds: how many parts the samples are cut into, from 2 to their number.
        trials: how many candidates are tried, drawn at random; None: all.
        seed: of folds, trials and intervals.
        confidence: of intervals, and of differences that are noise; between 0 and 1.
        batch_size: how many samples are explained, and how many forward passes run, at a time.
        dims: what :func:`attribute` takes.
        progress: whether to show a bar on stderr. Needs tqdm.
        traced: what :func:`attribute` takes: batches of one shape may run as one graph for each candidate, kept to the
            end; a candidate that is no graph fails if it is True.
        removing: ``baseline``, ``patch``, ``steps`` and ``input`` as for :func:`flip`, but with at most 32 steps by
            default; without ``input`` each input is changed in turn, and the mean is the score.

    Raises:
        TypeError: model, inputs, target or candidates are of a wrong kind, or there is no such argument.
        ValueError: a number is out of its range, there are fewer samples than folds, or scores do not fit the inputs.
        AttributionError: no candidate can explain the model; the reasons are in the message.

    Source: Stone 1974 (cross-validation of a choice); Bergstra and Bengio 2012 (random trials); scores: :data:`SCORES`.
    """
    asked = read_asked(score, batch_size, removing)
    check_traced(traced)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence!r}")
    model, groups = _batches(model, inputs, target, dims, batch_size, folds)
    search = _Search(model, _drawn(read_candidates(model, candidates), trials, seed), asked, traced)
    with torch.inference_mode(False), torch.enable_grad(), statistics_kept(model), _bar(wanted=progress) as bar:
        for given, goals, known in groups:
            search.add(given, goals, known, bar)
    return search.result(folds, confidence, seed)


def check_folds(folds: int, count: int) -> None:
    """Raise unless there are at least two folds, and as many samples as folds.

    Raises:
        ValueError: there are fewer samples than folds, or fewer than two folds.
    """
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= count:
        fewer = f" (the default is 5); pass folds={count}" if 2 <= count < 5 else ""
        raise ValueError(
            f"folds must be a whole number from 2 to the number of samples, which is {count}, got {folds!r}{fewer}"
        )


def folds_of(count: int, folds: int, seed: int) -> Tensor:
    """Return the fold of each sample, [count]; sizes of folds differ by at most one."""
    check_folds(folds, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    found = torch.empty(count, dtype=torch.long)
    found[order] = torch.arange(count) % folds
    return found


def _drawn(candidates: list[Candidate], trials: int | None, seed: int) -> list[Candidate]:
    if trials is None:
        return candidates
    check_count("trials", trials)
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    return [candidates[place] for place in order[:trials].sort().values.tolist()]


def _batches(
    model: Any, inputs: Any, target: Any, dims: Any, size: int, folds: int
) -> tuple[nn.Module, Iterator[tuple[Inputs, Goals, int]]]:
    """Return the model, and groups of at most `size` samples: inputs, targets, and the known number of samples."""
    several = isinstance(inputs, Iterable) and not (
        isinstance(inputs, (Tensor, tuple, list, str, Mapping)) or hasattr(inputs, "__array__")
    )
    wholes = iter(inputs) if several else iter([inputs])
    if not isinstance(model, nn.Module):
        first = next(wholes, None)
        if first is None:
            raise ValueError("there are no samples: inputs is empty")
        pipeline = model
        model, first = unpacked(pipeline, first)
        wholes = _and_then(first, (unpacked(pipeline, whole)[1] for whole in wholes))
    targets = target if several and isinstance(target, Iterator) else None

    def cut() -> Iterator[tuple[Inputs, Goals, int]]:
        known = 0
        for whole in wholes:
            given = read_inputs(model, whole, dims)
            goals = read_targets(target if targets is None else next(targets, None), given.count)
            known += given.count
            if not several:
                check_folds(folds, known)
            for part, batch in given.batches(size):
                yield batch, goals.part(part), known

    return model, cut()


def _and_then(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others


@contextmanager
def _bar(*, wanted: bool) -> Iterator[Any]:
    """Yield a bar on stderr, or None."""
    if not wanted:
        yield None
        return
    tqdm = needed("tqdm", "progress=True needs tqdm: pip install tqdm").tqdm
    with tqdm(unit="explanation", desc="tune") as bar:
        yield bar


class _Search:
    """The scores of all candidates, batch by batch; one that fails is left out from then on."""

    def __init__(self, model: nn.Module, candidates: list[Candidate], asked: Asked, traced: bool | str) -> None:
        self._model, self._candidates, self._asked = model, tuple(candidates), asked
        self._traced, self._graphs = traced, Kept[list[Any]](_SHAPES * len(candidates))
        self._parts: list[Tensor] = []
        self.failed: dict[str, str] = {}
        self.count = 0

    def add(self, given: Inputs, goals: Goals, known: int, bar: Any) -> None:
        """Score the explanations of a batch by all candidates."""
        numbers = torch.arange(self.count, self.count + given.count)
        judge = Judge(self._model, given, goals, numbers, self._asked)
        self.count += given.count
        found = torch.full((len(self._candidates), given.count), torch.nan, dtype=torch.float64)
        if bar is not None:
            bar.total = known * len(self._candidates)
        for place, candidate in enumerate(self._candidates):
            if bar is not None:
                bar.set_postfix_str(candidate.name, refresh=False)
            if candidate.name not in self.failed:
                try:
                    explained = self._explained(candidate.composite, given, judge.goals)
                except CompositeError as error:
                    self._fail(candidate, error)
                else:
                    found[place] = judge.of(explained)
            if bar is not None:
                bar.update(given.count)
        self._parts.append(found)

    def _explained(self, composite: Composite, given: Inputs, goals: Goals) -> Attribution:
        run = Run(self._model, composite, given, [])
        graphs = Graphs(run, composite, always=self._traced is True, known=self._graphs) if self._traced else None
        return explained(run, graphs, goals, None)

    def _fail(self, candidate: Candidate, error: CompositeError) -> None:
        self.failed[candidate.name] = f"{type(error).__name__}: {error}"
        if len(self.failed) == len(self._candidates):
            raise AttributionError(
                f"no candidate can explain {type(self._model).__name__}; {candidate.name}: {error}"
            ) from error

    def result(self, folds: int, confidence: float, seed: int) -> Tuning:
        """Return the result; a candidate that failed anywhere has only NaN.

        Raises:
            ValueError: there are fewer samples than folds.
        """
        if not self._parts:
            raise ValueError("there are no samples: inputs is empty")
        values = torch.cat(self._parts, 1)
        for place, candidate in enumerate(self._candidates):
            if candidate.name in self.failed:
                values[place] = torch.nan
        fold, name = folds_of(self.count, folds, seed), self._asked.name
        return Tuning(self._candidates, values, fold, name, self.failed, confidence, seed)
