"""The core tests on several versions of Python, torch and transformers, each in an environment of its own.

    make matrix                                           # all of ROWS whose Python is on this machine
    make matrix MATRIX_ARGS="--only 4.46 --write docs/versions.md"

A row whose Python is not there, or whose packages cannot be installed, says so; a row that was left out keeps what the
page says of it, or is "not run". Environments stay in `.venv-matrix`.
Wheels of torch without CUDA: set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / ".venv-matrix"
CORE = (
    "--cases 1 tests/test_composite.py tests/test_keys.py tests/test_torch_internals.py tests/attribution "
    "tests/autograd tests/canonizers tests/cli tests/conservation tests/coverage tests/datasets tests/distributed "
    "tests/generation tests/heatmap tests/ledger tests/ops tests/presets tests/rules tests/runtime tests/similarity "
    "tests/targets tests/tracing tests/zoo --ignore tests/cli/test_concepts.py "
    "--ignore tests/attribution/test_saved.py "
    "--deselect tests/attribution/test_traced.py::test_a_compiled_graph_agrees_to_rounding_and_keeps_its_checks"
)
"""One case of each test here, but all architectures under two presets, and no graph that a compiler makes."""
ALL = "tests --ignore tests/test_layout.py --ignore tests/docs --ignore tests/examples --ignore tests/peers"
BESIDE = (
    "tabulate pytest pytest-timeout pytest-xdist hypothesis numpy pandas scikit-learn matplotlib Jinja2 tqdm pillow "
    "pyarrow networkx accelerate xarray"
)
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"


@dataclass(frozen=True)
class Versions:
    """One row of the matrix."""

    python: str
    torch: str
    transformers: str

    def __str__(self) -> str:
        return f"Python {self.python}, torch {self.torch}, transformers {self.transformers}"

    @property
    def folder(self) -> Path:
        """Where its environment is."""
        return FOLDER / f"python{self.python}-torch{self.torch}-transformers{self.transformers}"


ROWS = (
    Versions("3.10", "2.4.1", "4.46.3"),
    Versions("3.10", "2.5.1", "4.48.3"),
    Versions("3.11", "2.6.0", "4.51.3"),
    Versions("3.11", "2.13.0", "4.46.3"),
    Versions("3.11", "2.13.0", "4.57.1"),
    Versions("3.12", "2.8.0", "4.57.1"),
    Versions("3.12", "2.13.0", "5.24.0"),
    Versions("3.13", "2.10.0", "5.0.0"),
    Versions("3.13", "2.13.0", "5.24.0"),
)


def interpreter(version: str) -> str | None:
    """The path of this version of Python, on the path or among pyenv's; one that does not run is none."""
    others = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for found in (shutil.which(f"python{version}"), *map(str, reversed(others))):
        if found and not subprocess.run([found, "--version"], capture_output=True).returncode:
            return found
    return None


def prepared(row: Versions) -> str:
    """Make the environment of a row; returns what went wrong, or nothing."""
    python = row.folder / "bin" / "python"
    if (row.folder / ".installed").exists():
        return ""
    start = interpreter(row.python)
    if start is None:
        return f"no Python {row.python} on this machine"
    uv = shutil.which("uv")
    subprocess.run([start, "-m", "venv", "--clear", *["--without-pip"] * bool(uv), row.folder], check=True)
    packages = [f"torch=={row.torch}", f"transformers=={row.transformers}", *BESIDE.split()]
    pip = [python, "-m", "pip", "install", "--no-compile", "--disable-pip-version-check"]
    command = [*([uv, "pip", "install", "--python", python] if uv else pip), "--quiet", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "error"))]
        return f"not installed: {errors[-1][:120] if errors else 'pip failed'}"
    (row.folder / ".installed").touch()
    return ""


def verdict(row: Versions, arguments: list[str]) -> tuple[str, list[str]]:
    """What the tests say in one environment, and the tests that failed."""
    trouble = prepared(row)
    if trouble:
        return trouble, []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [row.folder / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT).stdout
    counts = re.search(r"\n=*\s*((?:\d+ \w+,? ?)+) in ", said)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", said, flags=re.M)
    return counts[1] if counts else f"did not run: {' '.join(said.split())[-200:]}", failed


def told(page: str) -> dict[str, str]:
    """Return what a page says of each row, by the cells before it."""
    inside = page.partition(BEGIN)[2].partition(END)[0]
    found = (line.rpartition(" | ") for line in inside.splitlines())
    return {before: said.removesuffix(" |") for before, _, said in found}


def cells(row: Versions) -> str:
    return f"| {row.python} | {row.torch} | {row.transformers}"


def written(page: str, found: dict[str, str]) -> str:
    """Return a page with the table of these results between its markers."""
    before, _, rest = page.partition(BEGIN)
    lines = ["| Python | torch | transformers | core tests |", "|---|---|---|---|"]
    lines += [f"{cells(row)} | {found.get(cells(row), 'not run')} |" for row in ROWS]
    return "\n".join([before + BEGIN, "", *lines, "", END + rest.partition(END)[2]])


def main() -> int:
    """Run the matrix; print each row, and write the table between its markers in a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows that contain this text")
    parser.add_argument("--tests", default=CORE, help="what pytest is given")
    parser.add_argument("--all", action="store_const", const=ALL, dest="tests", help="all cases of nearly all tests")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    parser.add_argument("--write", type=Path, help="a page with the markers of the table")
    options = parser.parse_args()
    rows = [row for row in ROWS if options.only in str(row)]
    wrong = False
    with ThreadPool(options.jobs) as pool:
        verdicts = pool.imap_unordered(lambda row: (row, *verdict(row, shlex.split(options.tests))), rows)
        for row, said, failed in verdicts:
            print(f"{row}: {said}", *failed, sep="\n    ", flush=True)
            wrong |= bool(failed)
            if options.write is not None:
                page = options.write.read_text("utf-8")
                options.write.write_text(written(page, {**told(page), cells(row): said}), "utf-8")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
