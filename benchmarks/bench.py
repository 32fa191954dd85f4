"""The benchmarks that matter, run in turn, and their tables written into a page; ``make bench`` calls this.

    python benchmarks/bench.py [--full] [--runs 3] [--only rules.py parity.py] [--peers DIR] [--write docs/measured.md]

What is timed runs as often as --runs says, everything else once: it is seeded. A number of a table is the median of the
runs, with the lowest and the highest where they differ; the block of each command names machine, versions and date.
Peers that fail are named with their reason, and so is a command that fails, which does not keep the others from
running. Quick settings take about half an hour on two free cores; --full runs each command as its own documentation
says, which takes hours.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
from marks import between
from measure import KEPT
from tabulate import tabulate

HERE = Path(__file__).resolve().parent
COMMANDS = {
    "peers.py": "",
    "parity.py": "",
    "conserving.py": "--count 60",
    "rules.py": "--repeats 3",
    "overhead.py": "--repeats 3",
    "overhead.py --small": "--repeats 21",
    "growth.py": "--repeats 3",
    "traced.py": "--rows *6x64*16* --presets attnlrp --repeats 7",
    "flipping.py": "--samples 100 --baseline mean",
    "photographs.py": "--views 2",
    "needle.py": "--seeds 1 --samples 200",
    "recurrent.py": "--seeds 1 --samples 60 --task keywords",
    "brackets.py": "--seeds 1 --samples 100",
}
"""The commands, and their further options in quick mode."""
WITH_PEERS = ("peers.py", "parity.py", "conserving.py", "rules.py", "growth.py", "traced.py")
TIMED = ("rules.py", "overhead.py", "overhead.py --small", "growth.py", "traced.py")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_FOLDER = re.compile(r"/\S*/site-packages/")
Entry = dict[str, Any]


def run(script: str, options: list[str]) -> tuple[list[Entry], str]:
    """The tables and notes of one run of a script, and how it failed: empty if it did not."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "tables")
        environment = {**os.environ, KEPT: str(kept), "PYTHONPATH": os.pathsep.join(_places())}
        done = subprocess.run(
            [sys.executable, str(HERE / script.split()[0]), *script.split()[1:], *options],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        entries = [json.loads(line) for line in kept.read_text("utf-8").splitlines()] if kept.exists() else []
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return entries, f"exit status {done.returncode}: {last}" if done.returncode else ""


def _places() -> list[str]:
    return [str(HERE.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def merged(runs: list[list[Entry]]) -> tuple[list[Entry], list[str]]:
    """The tables of several runs as one, and all notes, once each.

    A row belongs to that of the same name, since some tables are sorted by their results.
    """
    tables = [[entry for entry in entries if "rows" in entry] for entries in runs]
    notes = [entry["note"] for entries in runs for entry in entries if "note" in entry]
    found = []
    for place, first in enumerate(tables[0]):
        others = [each[place] for each in tables if place < len(each) and each[place]["headers"] == first["headers"]]
        named = [_by_name(table["rows"]) for table in others]
        rows = [
            [in_one([rows[name][column] for rows in named if name in rows]) for column in range(len(row))]
            for name, row in named[0].items()
        ]
        found.append({**first, "rows": rows})
    return found, list(dict.fromkeys(notes))


def _by_name(rows: list[list[str]]) -> dict[tuple[str, int], list[str]]:
    found: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        name = " ".join(cell for cell in row[:2] if not _NUMBER.match(cell))
        found[name, sum(name == other for other, _ in found)] = row
    return found


def in_one(cells: list[str]) -> str:
    """The median of each number in a cell, with its range in brackets where the runs differ.

    Cells that differ in anything but numbers stand side by side.
    """
    kinds = {_NUMBER.sub("#", cell) for cell in cells}
    if len(set(cells)) == 1:
        return cells[0]
    if len(kinds) > 1:
        return " | ".join(dict.fromkeys(cells))
    columns = zip(*(_NUMBER.findall(cell) for cell in cells), strict=True)
    parts = []
    for numbers in columns:
        ordered = sorted(numbers, key=float)
        low, middle, high = ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]
        parts.append(middle if low == high else f"{middle} ({low} to {high})")
    texts = iter(parts)
    return _NUMBER.sub(lambda _: next(texts), cells[0])


def versions(peers: str | None) -> str:
    """What ran where: processor, cores, Python, torch, and the peers' versions."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text("utf-8")) if info.exists() else []
    machine = [models[0] if models else platform.machine(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        machine.append(torch.cuda.get_device_name())
    packages = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    names = ("zennit", "lxt", "tdhook", "captum", "inseq")
    if peers:
        known = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions(path=[peers])}
        packages += [f"{name} {known.get(name, 'not there')}" for name in names]
    return f"{', '.join(machine)}; {', '.join(packages)}"


def block(command: str, runs: list[list[Entry]], failures: list[str], where: str) -> str:
    """What is written of a command, in Markdown."""
    head = f"`python benchmarks/{command}`, {date.today().isoformat()}, runs: {len(runs)}. {where}."
    parts = [head]
    tables, notes = merged(runs) if runs else ([], [])
    notes = list(dict.fromkeys(_FOLDER.sub("", note) for note in notes))
    for table in tables:
        rows = [[cell.replace("|", "\\|") for cell in row] for row in table["rows"]]
        title = " ".join(table["title"].split())
        parts.append(f"{title}:\n\n{tabulate(rows, table['headers'], 'github', disable_numparse=True)}")
    if notes:
        parts.append("How peers failed:\n\n" + "\n".join(f"* `{note.replace('`', chr(39))}`" for note in notes))
    parts += [f"The command failed: `{reason}`" for reason in dict.fromkeys(filter(None, failures))]
    return "\n\n".join(parts)


def main() -> int:
    """Run, print, write; 1 if a command failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the commands' own settings; takes hours")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--peers", help="folder with other libraries, as pip install --target makes it")
    parser.add_argument("--write", type=Path, help="a page with marks for each command, such as docs/measured.md")
    options = parser.parse_args()
    where, failed = versions(options.peers), 0
    for script in options.only:
        given = "" if options.full else COMMANDS[script]
        told = f"{script} {given}".strip() + (" --peers DIR" if script in WITH_PEERS else "")
        peers = ["--peers", options.peers] if options.peers and script in WITH_PEERS else []
        print(f"\n=== {told}", flush=True)
        runs = options.runs if script in TIMED else 1
        found = [run(script, [*given.split(), *peers]) for _ in range(runs)]
        text = block(told, [entries for entries, _ in found], [failure for _, failure in found], where)
        failed += any(failure for _, failure in found)
        print(f"\n{text}", flush=True)
        if options.write:
            between(options.write, f"bench: {script}", lambda _, text=text: text)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
