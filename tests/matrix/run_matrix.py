"""The core tests on several versions of Python, torch and transformers, each in an environment of its own.

    make matrix                                           # all of ROWS whose Python is on this machine
    make matrix MATRIX_ARGS="--only 4.46 --write docs/versions.md"

A row whose Python is not there, or whose packages cannot be installed, says so. Environments stay in `.venv-matrix`.
Wheels of torch without CUDA: set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / ".venv-matrix"
CORE = (
    "tests/rules tests/runtime tests/ledger tests/conservation tests/canonizers tests/autograd tests/ops "
    "tests/test_composite.py tests/test_keys.py tests/test_torch_internals.py tests/presets tests/zoo tests/attribution"
)
BESIDE = (
    "tabulate pytest pytest-timeout pytest-xdist hypothesis numpy pandas scikit-learn matplotlib Jinja2 tqdm pillow"
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
    Versions("3.11", "2.13.0", "5.23.0"),
    Versions("3.12", "2.8.0", "4.57.1"),
    Versions("3.12", "2.13.0", "5.23.0"),
    Versions("3.13", "2.10.0", "5.0.0"),
    Versions("3.13", "2.13.0", "5.23.0"),
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
    subprocess.run([start, "-m", "venv", "--clear", row.folder], check=True)
    packages = [f"torch=={row.torch}", f"transformers=={row.transformers}", *BESIDE.split()]
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
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


def main() -> int:
    """Run the matrix; print the table, and write it between its markers in a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows that contain this text")
    parser.add_argument("--tests", default=CORE, help="what pytest is given")
    parser.add_argument("--write", type=Path, help="a page with the markers of the table")
    options = parser.parse_args()
    lines = ["| Python | torch | transformers | core tests |", "|---|---|---|---|"]
    wrong = False
    for row in ROWS:
        if options.only not in str(row):
            continue
        said, failed = verdict(row, options.tests.split())
        print(f"{row}: {said}", *failed, sep="\n    ", flush=True)
        lines.append(f"| {row.python} | {row.torch} | {row.transformers} | {said} |")
        wrong |= bool(failed)
    if options.write is not None:
        page = options.write.read_text("utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        options.write.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]), "utf-8")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
