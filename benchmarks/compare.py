"""Two checkouts compared: the tables that a benchmark prints in each, row by row.

    python benchmarks/compare.py ../before                                     # everything; takes an hour or more
    python benchmarks/compare.py ../before --run "overhead.py --repeats 5"     # one command; may be given several times

Each command runs in the other checkout and in this one, one after the other, with the scripts of each; a script that
the other checkout lacks is run from here on the other's package. A cell is ``before -> after``, or one value where both
are the same.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

HERE = Path(__file__).resolve().parent.parent
COMMANDS = ["parity.py", "zoo.py", "ledger.py", "rules.py", "llama.py", "overhead.py", "overhead.py --small"]
Table = dict[tuple[str, ...], list[str]]


def output_of(command: str, checkout: Path) -> str:
    """Return what a benchmark prints on the package of a checkout."""
    script, *options = command.split()
    path = checkout / "benchmarks" / script
    own = path.exists() and all(f'"{name}"' in path.read_text("utf-8") for name in options if name.startswith("--"))
    given = [sys.executable, str(path if own else HERE / "benchmarks" / script), *options]
    places = [str(checkout), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    return subprocess.run(given, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def is_number(cell: str) -> bool:
    """Whether a cell is a result rather than a name: a number, a ratio of two, yes or no."""
    return bool(re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?%?( / [\d.,]+)?|yes|no|NO|-|nan", cell))


def read(printed: str) -> Table:
    """Return the rows of all tables: results by title and names; rows of the same names have a number."""
    found: Table = {}
    title, lines = "", printed.splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        cells = re.split(r"\s{2,}", line.strip())
        names = [cell for cell in cells if not is_number(cell)]
        results = [cell for cell in cells if is_number(cell)]
        if line.strip() and not before.strip() and not results:
            title = line.strip()[:40]
        elif results and not set(line) <= set("- "):
            key = (title, *names)
            while key in found:
                key = (*key, "again")
            found[key] = results
    return found


def compared(before: Table, after: Table) -> list[list[str]]:
    """Return a row for each row of either table."""
    rows = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key, ["missing"]), after.get(key, ["missing"])
        if len(old) == len(new):
            cells = [a if a == b else f"{a} -> {b}" for a, b in zip(old, new, strict=True)]
        else:
            cells = [f"{' '.join(old)} -> {' '.join(new)}"]
        rows.append([key[0], " ".join(key[1:]), *cells])
    return rows


def main() -> None:
    """Run the commands, and print what they print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--run", action="append", help="a script with its options; all of them if left out")
    options = parser.parse_args()
    for command in options.run or COMMANDS:
        rows = compared(*(read(output_of(command, folder)) for folder in (options.before.resolve(), HERE)))
        print(f"\n{command}\n{tabulate(rows, tablefmt='plain', disable_numparse=True)}", flush=True)


if __name__ == "__main__":
    main()
