"""Two processes of torch.distributed on one machine, which run the same functions and hand back what those return."""

import os
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIZE = 2


def in_two_processes(cases):
    """Run each of the named functions of no argument in both processes, one after the other.

    Returns:
        For each name, what the function returned in each process, or the text of its error.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (cases, folder), nprocs=SIZE)
        by_rank = [torch.load(Path(folder, str(rank)), weights_only=False) for rank in range(SIZE)]
    return {name: [found[name] for found in by_rank] for name in cases}


def once_for_all_workers(folders, name, make):
    """What a function makes, pickled: made by the first of pytest's workers that asks, read by all others.

    Args:
        folders: the fixture `tmp_path_factory`.
        name: of the file that it is kept in.
        make: the function.
    """
    place = folders.getbasetemp()
    kept = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / name
    try:
        kept.with_suffix(".started").mkdir()
    except FileExistsError:
        while not kept.exists():
            time.sleep(0.2)
        return torch.load(kept, weights_only=False)
    try:
        result = make()
    except Exception:
        result = traceback.format_exc()
    torch.save(result, kept.with_suffix(".written"))
    kept.with_suffix(".written").rename(kept)
    return result


def _worker(rank, cases, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # no other network is asked for
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(SIZE)}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/start", rank=rank, world_size=SIZE, timeout=timedelta(seconds=60)
    )
    found = {}
    for name, case in cases.items():
        try:
            found[name] = case()
        except Exception:
            found[name] = traceback.format_exc()
        dist.barrier()
    torch.save(found, Path(folder, str(rank)))
    dist.destroy_process_group()
