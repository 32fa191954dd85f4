"""Samples of a data set by number: those of this process, and those that cannot be read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import distributed
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from ..autograd.sharded import is_distributed

Numbered = tuple[int, Any]
"""The number of a sample in its data set, and the sample or :class:`Unreadable`."""


@dataclass(frozen=True)
class Unreadable:
    """A sample that could not be read, and why."""

    reason: str


@dataclass(frozen=True)
class Samples:
    """The samples of a data set in groups.

    Attributes:
        dataset: has ``[i]`` and ``len()``, or is an iterable of samples.
        collate: makes a batch of a list of samples.
        batch_size: how many samples make a batch.
        workers: how many processes read samples.
        count: the number of samples; None if it is unknown before they are read.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any]
    batch_size: int
    workers: int
    count: int | None

    def groups(self, rank: int, size: int, done: Set[int]) -> Iterator[list[Numbered]]:
        """Yield the samples of one process in groups, without those that are done.

        Args:
            rank: the number of this process; it has the samples rank, rank + size, rank + 2 * size, ... as
                :class:`torch.utils.data.DistributedSampler` deals them out, none of them twice.
            size: how many processes there are.
            done: the numbers of samples to be left out.
        """
        if self.count is None:
            mine = ((i, x) for i, x in enumerate(self.dataset) if i % size == rank and i not in done)
            while group := list(islice(mine, self.batch_size)):
                yield group
            return
        wanted = [i for i in range(rank, self.count, size) if i not in done]
        chosen = _Chosen(self.dataset, wanted)
        yield from DataLoader(chosen, self.batch_size, collate_fn=list, num_workers=self.workers)  # type: ignore[arg-type]


class _Chosen:
    """Some samples of a data set with their numbers; :class:`Unreadable` where reading raised an error."""

    def __init__(self, dataset: Any, wanted: list[int]) -> None:
        self._dataset, self._wanted = dataset, wanted

    def __len__(self) -> int:
        return len(self._wanted)

    def __getitem__(self, place: int) -> Numbered:
        number = self._wanted[place]
        try:
            return number, self._dataset[number]
        except Exception as error:  # raised by the code that reads the sample
            return number, Unreadable(f"{type(error).__name__}: {error}")


def read_samples(source: Any, batch_size: int | None, collate: Callable[[list[Any]], Any] | None) -> Samples:
    """Return the samples of a data set or of a loader.

    Args:
        source: a :class:`torch.utils.data.DataLoader`, whose data set, batch size, ``collate_fn`` and number of workers
            are taken, but not its order; or a data set.
        batch_size: how many samples make a batch; by default the loader's, or 1.
        collate: makes a batch of a list of samples; by default the loader's, or torch's.

    Raises:
        TypeError: it is neither, or a loader without a batch size.
    """
    if isinstance(source, DataLoader):
        if source.batch_sampler is None and source.batch_size is None:
            raise TypeError("the loader makes no batches (batch_size=None); pass its data set, and batch_size=")
        size, collated = batch_size or source.batch_size, collate or source.collate_fn
        dataset, workers = source.dataset, source.num_workers
        if size is None:
            raise TypeError("the loader has a batch sampler of its own: say batch_size= too")
    else:
        dataset, size, collated, workers = source, batch_size or 1, collate or default_collate, 0
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset):
        if isinstance(source, DataLoader) and not _takes_each_once(source.sampler):
            warnings.warn(
                f"{type(source.sampler).__name__} of the loader is not used: each of the {len(dataset)} samples of its "
                f"data set is explained once; for some of them pass torch.utils.data.Subset(data, numbers)",
                stacklevel=3,
            )
        return Samples(dataset, collated, size, workers, len(dataset))
    if not isinstance(dataset, Iterable):
        raise TypeError(
            f"a data set has len() and [i], or is iterable; got {dataset!r} of type {type(dataset).__name__}"
        )
    return Samples(dataset, collated, size, 0, None)


def _takes_each_once(sampler: Any) -> bool:
    """Return whether a sampler is known to take each sample of a data set once, in some order and some process."""
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    return isinstance(sampler, (SequentialSampler, DistributedSampler))


def place_among_processes() -> tuple[int, int]:
    """Return the number of this process and how many there are.

    From torch.distributed, or from the environment variables of ``torchrun`` and ``accelerate launch``.
    """
    if is_distributed():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
