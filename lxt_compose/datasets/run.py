"""Attribution of a data set: the results of :func:`lxt_compose.attribute` for each sample, as files of rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, distributed, nn

from ..attribution.goals import for_every_sample
from ..attribution.run import composite_of
from ..autograd.sharded import comes_and_goes, is_distributed, is_sharded
from ..composite import Composite
from ..errors import AttributionError
from ..extras import needed
from .batches import Batches
from .coverage import Coverage
from .manifest import begin, described, finish
from .rows import Row
from .samples import place_among_processes, read_samples
from .shards import Shards, arrow

_GIVE_UP = 100
"""Samples that may fail before the first one is explained."""


@dataclass(frozen=True)
class Writing:
    """How results are written, and by which of several processes.

    Attributes:
        rank: the number of this process; by default from ``torch.distributed``, ``torchrun`` or ``accelerate launch``.
        world_size: how many processes there are; the samples are dealt out among them.
        shard_size: a file is written after this number of samples,
        every: or after this number of seconds.
    """

    rank: int | None = None
    world_size: int | None = None
    shard_size: int = 1000
    every: float = 60.0

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {self.shard_size}")

    def place(self) -> tuple[int, int]:
        """Return the number of this process and how many there are.

        Raises:
            ValueError: the number is out of range.
        """
        rank, size = place_among_processes()
        rank, size = rank if self.rank is None else self.rank, size if self.world_size is None else self.world_size
        if not 0 <= rank < size:
            raise ValueError(f"rank must be from 0 to world_size - 1, got {rank} of {size}")
        return rank, size


WRITING = {field.name for field in fields(Writing)}
"""The arguments of :func:`attribute_dataset` that say how to write."""


@dataclass(frozen=True)
class Explained:
    """The result of :func:`attribute_dataset`.

    Attributes:
        out: the folder; ``pandas.read_parquet(out)`` reads the rows, of all processes that are done.
        manifest: the content of ``_manifest.json`` in the folder.
        samples: how many samples this process has explained in this run.
        seconds: the time of that.
    """

    out: Path
    manifest: dict[str, Any]
    samples: int
    seconds: float

    @property
    def failed(self) -> int:
        """The number of samples that could not be explained; their rows say why, in the column ``error``."""
        return int(self.manifest["samples"]["failed"])

    @property
    def complete(self) -> bool:
        """Whether relevance met rules everywhere, for every sample that was explained."""
        return bool(self.manifest["complete"])

    def __repr__(self) -> str:
        count, rate = self.manifest["samples"], self.samples / max(self.seconds, 1e-9)
        state = "complete" if self.complete else "NOT complete"
        return f"<{count['done']} samples in {self.out}, {count['failed']} failed, {state}; {rate:.3g} samples/s>"


def attribute_dataset(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    inputs: Callable[[Any], Any] | None = None,
    target: Any = None,
    target_of: Callable[[Any], Any] | None = None,
    composite: str | Composite = "attnlrp",
    keep: str = "scores",
    batch_size: int | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> Explained:
    """Explain each sample of a data set, and write the results to disk as they come: ``pandas.read_parquet(out)``.

    There is a row for each sample and target. A call with the same folder continues with the samples that have no row.

    Args:
        model: any module, in ``eval()`` mode.
        data: a data set (``len()`` and ``[i]``, or an iterable), or a loader, whose data set, batch size,
            ``collate_fn`` and workers are used, in the order of the data set.
        out: a folder, which is made if it does not exist.
        inputs: a function from a batch to inputs for :func:`attribute`; needed for lists: ``lambda batch: batch[0]``.
        target: what is explained, as for :func:`attribute`; of a list each one, in every sample.
        target_of: a function from a batch to its target instead.
        composite: the name of a preset, or a :class:`Composite`.
        keep: "scores", one number per token, pixel, ...; or "relevance", with channels and features.
        batch_size: how many samples to run at a time; by default the loader's, or 1.
        collate: makes a batch of a list of samples; by default the loader's, or torch's.
        progress: whether to show samples and their rate on stderr, in the first process. Needs tqdm.
        options: ``layers``, ``dims`` and ``traced`` go to :func:`attribute`, the rest to :class:`Writing`.

    Returns:
        What was done, with the manifest.

    Raises:
        ValueError: the folder holds results of another model, composite or target, or an argument has no such value.
        TypeError: data, model or what a batch is are of a wrong kind.
        AttributionError: none of the first samples can be explained; the first error is in the message.
        ImportError: pyarrow is not installed.
    """
    writing = Writing(**{name: options.pop(name) for name in WRITING & options.keys()})
    _check(model, keep, options)
    rank, size = writing.place()
    _check_spread(model, size)
    samples, rules, folder = read_samples(data, batch_size, collate), composite_of(composite), Path(out)
    target = for_every_sample(target, samples.count)
    settings = {"target": target_of or target, "inputs": inputs, "keep": keep, "samples": samples.count, **options}
    what = described(model, rules, {name: _told(value) for name, value in settings.items()})
    begin(folder, what)
    explain = Batches(model, samples, inputs, target, target_of, keep, {**options, "composite": rules})
    run, start = _Run(explain, Shards(folder), writing), time.monotonic()
    run.all(rank, size, show=progress and rank == 0)
    seconds = time.monotonic() - start
    if is_distributed():
        distributed.barrier()
    return Explained(folder, finish(folder, what, samples.count), run.count, seconds)


def _check(model: Any, keep: str, options: dict[str, Any]) -> None:
    arrow()
    if not isinstance(model, nn.Module):
        raise TypeError(f"attribute_dataset() takes a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    if keep not in ("scores", "relevance"):
        raise ValueError(f"keep must be 'scores' or 'relevance', got {keep!r}")
    unknown = options.keys() - {"layers", "dims", "traced"}
    if unknown:
        raise TypeError(f"attribute_dataset() has no argument {', '.join(sorted(unknown))}")


def _check_spread(model: nn.Module, count: int) -> None:
    """Raise for a model whose processes must run the same samples, or equally many."""
    spread = any(map(is_sharded, model.parameters())) or any(map(comes_and_goes, model.modules()))
    if count > 1 and spread:
        raise ValueError(
            "the model is spread over processes, which must all run it equally often, so samples cannot be dealt out "
            "among them; call attribute() in all of them, batch by batch, or give each process a whole model"
        )


def _told(value: Any) -> str:
    """Return a setting as a text, the same in every run."""
    if isinstance(value, Tensor):
        return repr(value.tolist())
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else str(name)  # without the module, which may be __main__


class _Run:
    """One process's part of a data set."""

    def __init__(self, batches: Batches, shards: Shards, writing: Writing) -> None:
        self._batches, self._shards, self._writing = batches, shards, writing
        self._rows: list[Row] = []
        self._coverage = Coverage()
        self._explained = False
        self.count = 0

    def all(self, rank: int, world_size: int, *, show: bool) -> None:
        """Explain all samples of this process that have no rows yet."""
        done, _ = self._shards.done()
        self._explained, written = bool(done), time.monotonic()
        total, samples = self._batches.samples.count, self._batches.samples
        mine = None if total is None else len(range(rank, total, world_size))
        before = sum(number % world_size == rank for number in done)
        bar = _bar(mine, before) if show else None
        try:
            for group in samples.groups(rank, world_size, done):
                self._rows += self._batches.rows(group, self._coverage)
                self.count += len(group)
                self._check_hope()
                if bar is not None:
                    bar.update(len(group))
                if len(self._rows) >= self._writing.shard_size or time.monotonic() - written > self._writing.every:
                    written = self._write(written)
            self._explained |= world_size > 1 or not mine  # else _check_hope has raised
            self._write(written)
        finally:
            if bar is not None:
                bar.close()

    def _write(self, before: float) -> float:
        """Write the rows so far; return the time of the last write."""
        if not self._rows or not self._explained:
            return before
        self._shards.write(self._rows, self._coverage)
        self._rows, self._coverage = [], Coverage()
        return time.monotonic()

    def _check_hope(self) -> None:
        """Raise if no sample could be explained so far, so that the samples are not the reason."""
        if self._explained:
            return
        self._explained = any(row["error"] is None for row in self._rows)
        total = self._batches.samples.count
        if not self._explained and self.count >= min(_GIVE_UP, self.count if total is None else total):
            raise AttributionError(
                f"none of the first {self.count} samples can be explained, so nothing was written; the first one: "
                f"{self._rows[0]['error']}"
            )


def _bar(total: int | None, before: int) -> Any:
    tqdm = needed("tqdm", "progress=True needs tqdm: pip install tqdm").tqdm
    return tqdm(total=total, initial=before, unit="sample", desc="attribute_dataset")
