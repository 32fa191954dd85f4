"""Measuring within one run: interleaved timings as medians and ratios, peak memory from the allocator's own events."""

import gc
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

Job = Callable[[], object]
KEPT = "LXT_COMPOSE_BENCH"
"""The variable of the environment that names the file which :mod:`bench` reads."""


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _calls(job: Job, clock: Callable[[], float], least: float = 0.02) -> int:
    """Return how many calls in a row take at least so many seconds; the job has run twice then."""
    job()
    _wait()
    start = clock()
    job()
    _wait()
    return min(10, math.ceil(least / max(clock() - start, 1e-4)))


def times(jobs: dict[str, Job], repeats: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each job, `repeats` times, the jobs in turn so that a drift of the machine's speed hits them alike.

    A job of a few milliseconds is called several times in a row, as ``timeit`` does, and the mean of these calls counts
    once: what a call costs is not what it costs to fetch the job back from memory after the others.
    On a machine that others use too, ``clock=time.process_time`` with one thread counts the processor's time alone.
    """
    calls = {name: _calls(job, clock) for name, job in jobs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, job in jobs.items():
                _wait()
                start = clock()
                for _ in range(calls[name]):
                    job()
                _wait()
                seconds[name].append((clock() - start) / calls[name])
    finally:
        gc.enable()
    return seconds


def peak_memory(job: Job) -> int:
    """Bytes that the job allocates at most at one time, beyond what was there before."""
    job()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        job()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    now = peak = 0
    for _, change in events:
        now += change
        peak = max(peak, now)
    return peak


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """The median over the rounds of each job's time as a multiple of the base's in the same round."""
    return {
        name: statistics.median(a / b for a, b in zip(values, seconds[base], strict=True))
        for name, values in seconds.items()
    }


def show(title: str, headers: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table with a title, and keep it for :mod:`bench`."""
    headers, rows = list(headers), [list(row) for row in rows]
    print(f"\n{title}\n{tabulate(rows, headers=headers, floatfmt='.3f')}", flush=True)
    texts = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    keep({"title": title, "headers": headers, "rows": texts})


def keep(entry: dict[str, Any]) -> None:
    """Write an entry as a line of the file that the environment names, if it does: a table, or a note."""
    path = os.environ.get(KEPT)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
