"""Which preset for which kind of model? `evaluate.tune` on models of ten kinds.

    python benchmarks/choosing.py [--kind vit encoder ...] [--samples 60] [--write docs/choosing.md]

Each kind has a model that is pretrained or learns within a minute (choosing_kinds.py). Candidates are scored by the
symmetric relevance gain; *held out* is what the best of the other folds gains, *over the default* how much that is
above AttnLRP, with an interval at 95 %. All that cannot be told from the best is named, the best first. With --write
the table goes between two marks of that page; rows of kinds that did not run stay.
"""

import argparse
import time
from pathlib import Path

import torch
from choosing_kinds import KINDS
from marks import between
from tabulate import tabulate

from lxt_compose.evaluate import Tuning, tune

HEAD = ["kind", "model", "best, and what cannot be told from it", "held out", "over the default", "command"]
MARK = "choosing.py"
_NAMED = 4


def names_of(found: Tuning) -> str:
    """The best, and all that cannot be told from it."""
    names = [f"`{candidate.name}`" for candidate in found.within_noise]
    rest = len(names) - _NAMED
    told = ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
    working = len(found.candidates) - len(found.failed)
    return (
        f"{told} (of {working})" if len(names) < working else f"{told} (all {working}: no difference is beyond noise)"
    )


def row_of(kind: str, found: Tuning, about: str, samples: int) -> list[str]:
    """The row of a kind."""
    mean, low, high = found.over("attnlrp")
    n = found.values.shape[1]
    return [
        kind, f"{about}; {n} samples", names_of(found), f"{float(found.held_out.mean()):.3g}",
        f"{mean:+.2g} ({low:+.2g} to {high:+.2g})", f"`python benchmarks/choosing.py --kind {kind}`",
    ]  # fmt: skip


def main() -> None:
    """Tune each kind, print, and write the table on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--write", type=Path, help="a page with marks, such as docs/choosing.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.kind:
        start = time.process_time()
        kind = KINDS[name](options.samples)
        prepared = time.process_time()
        found = tune(kind.model, kind.inputs, kind.candidates, target=kind.target, **kind.removing)
        spent = prepared - start, time.process_time() - prepared
        print(f"\n{name}: {kind.about} (prepared in {spent[0]:.0f} s, tuned in {spent[1]:.0f} s)\n{found}", flush=True)
        row = row_of(name, found, kind.about, options.samples)
        if options.write:
            between(options.write, MARK, lambda text, row=row: with_row(text, row))


def with_row(text: str, row: list[str]) -> str:
    """A table in Markdown with a row in the place of that of the same kind."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    rows = {cells[0]: cells for cells in lines[2:]} | {row[0]: row}
    ordered = [rows[name] for name in KINDS if name in rows]
    return tabulate(ordered, HEAD, "github", disable_numparse=True)


if __name__ == "__main__":
    main()
