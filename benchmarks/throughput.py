"""Attribution of 1,000 digits: how many a second, and whether memory stays flat; a data set on one process and on two.

    python benchmarks/throughput.py [--samples 1000] [--batch-size 50] [--only processes]

Each way to explain runs over the same scans in batches, five times; printed are scans per second (the median), the cost
as a multiple of plain gradient x input in the same run, how many more tensors are alive after the last pass than after
the first, and how much the resident memory of the process grew meanwhile. Then `attribute_dataset` writes the scans to
disk, on one process and on two in turn; the time is from when all have loaded to when the last has written its rows.
On a machine that others use too, the processor time of the busier process tells what two free cores would give.
"""

import argparse
import gc
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from measure import show
from torch import Tensor, nn

from lxt_compose import attribute, attribute_dataset, baselines
from lxt_compose.demo.data import load_digits
from lxt_compose.demo.explain import cnn_composite, vit_composite
from lxt_compose.demo.models import SmallCNN, SmallViT

PASSES = 5


def resident() -> int:
    """Bytes of memory that the process holds now; where the system does not tell, the most that it ever held."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tensors() -> int:
    """How many tensors are alive."""
    gc.collect()
    return sum(isinstance(thing, Tensor) for thing in gc.get_objects())


def share(rank: int, count: int, samples: int, size: int, folder: str, start: Any, told: Any) -> None:
    """Explain one process's share of a data set once all are ready; tell when it began and ended, and its work."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, images = SmallViT().eval(), load_digits().train_images
    images = images[torch.arange(samples) % len(images)]
    options = {"inputs": itemgetter("pixels"), "batch_size": size, "progress": False}
    data = [{"pixels": image} for image in images]
    with tempfile.TemporaryDirectory() as other:  # what is done once: libraries are loaded, kernels chosen
        attribute_dataset(model, data[: 2 * size], other, rank=0, world_size=1, **options)
    start.wait()
    began, work = time.monotonic(), time.process_time()
    attribute_dataset(model, data, folder, rank=rank, world_size=count, **options)
    told.put((began, time.monotonic(), time.process_time() - work))


def on_processes(count: int, samples: int, size: int) -> tuple[float, float]:
    """Seconds from when all have loaded to when the last has written its rows; processor time of the busiest."""
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(count), context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(rank, count, samples, size, folder, start, told) for rank in range(count)]
        running = [context.Process(target=share, args=each) for each in arguments]
        for process in running:
            process.start()
        found = [told.get(timeout=600) for _ in running]
        for process in running:
            process.join()
        began, ended, work = zip(*found, strict=True)
        return max(ended) - min(began), max(work)


def processes(samples: int, size: int, rounds: int) -> None:
    """Print the table for a data set on one process and on two, which take turns."""
    found = [[on_processes(count, samples, size) for count in (1, 2)] for _ in range(rounds)]
    rows = []
    for place, name in enumerate(("one process", "two processes")):
        seconds, work = (statistics.median(pair[place][kind] for pair in found) for kind in (0, 1))
        faster, less = (statistics.median(pair[0][kind] / pair[place][kind] for pair in found) for kind in (0, 1))
        rows.append([name, f"{samples / seconds:.0f}", faster, f"{work:.2f}", less])
    title = f"attribute_dataset, ViT: {samples} scans in batches of {size}, {rounds} rounds, one thread each"
    head = ["", "scans / s", "times as fast", "processor time of the busiest (s)", "times less"]
    show(title, head, rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--only", choices=("attribute", "processes"))
    parser.add_argument("--rounds", type=int, default=PASSES, help="pairs of one process and two")
    options = parser.parse_args()
    if options.only != "processes":
        alone(options)
    if options.only != "attribute":
        processes(4 * options.samples, options.batch_size, options.rounds)


def alone(options: argparse.Namespace) -> None:
    """Print one table for each network."""
    torch.set_num_threads(1)
    digits = load_digits()
    x = torch.cat([digits.test_images, digits.train_images])[: options.samples]
    size = options.batch_size
    for name, build, composite in (("ViT", SmallViT, vit_composite()), ("CNN", SmallCNN, cnn_composite())):
        torch.manual_seed(0)
        model = build().eval()
        ways: dict[str, Callable[[nn.Module, Tensor], object]] = {
            "gradient x input": lambda m, x: baselines.gradient_x_input(m, x, batch_size=size),
            "attnlrp": lambda m, x: attribute(m, x, composite="attnlrp", batch_size=size),
            "attnlrp, with ledger": lambda m, x: attribute(m, x, composite="attnlrp", batch_size=size, ledger=True),
            "demo's composite (gamma)": lambda m, x, c=composite: attribute(m, x, composite=c, batch_size=size),
        }
        rows, base = [], 0.0
        for way, run in ways.items():
            seconds, held, alive = [], [], []
            for _ in range(PASSES):
                start = time.perf_counter()
                run(model, x)
                seconds.append(time.perf_counter() - start)
                alive.append(tensors())
                held.append(resident())
            spent = statistics.median(seconds)
            base = base or spent
            grown = f"{(held[-1] - held[0]) / 2**20:+.1f} of {held[-1] / 2**20:.0f}"
            rows.append([way, f"{len(x) / spent:.0f}", spent / base, alive[-1] - alive[0], grown])
        head = ["", "scans / s", "time (x gradient)", "tensors left", "memory (MiB)"]
        show(f"{name}: {len(x)} scans in batches of {size}, {PASSES} passes, one thread", head, rows)


if __name__ == "__main__":
    main()
