"""Attribution of 1,000 digits: how many a second, and whether memory stays flat.

    python benchmarks/throughput.py [--samples 1000] [--batch-size 50]

Each way to explain runs over the same scans in batches, five times; printed are scans per second (the median), the cost
as a multiple of plain gradient x input in the same run, how many more tensors are alive after the last pass than after
the first, and how much the resident memory of the process grew meanwhile.
"""

import argparse
import gc
import os
import resource
import statistics
import time
from collections.abc import Callable

import torch
from measure import show
from torch import Tensor, nn

from lxt_compose import attribute, baselines
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


def main() -> None:
    """Print one table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=50)
    options = parser.parse_args()
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
