"""Run the peers' own tests on lxt_compose, and explain each that fails; `make peers` calls this.

    python tests/peers/run_suites.py --sources DIR [--write docs/measured.md] [--only NAME]

With --write both tables go between two marks of that document, if all suites ran.

DIR holds source trees: unpacked source distributions, or checkouts. Source distributions of LXT and Zennit hold their
tests; those of tdhook and Captum do not. The exit status is 1 if a test fails that no kind explains.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from pathlib import Path

from suites import SUITES, version_of
from tabulate import tabulate

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
BEGIN, END = "<!-- make peers -->\n", "<!-- end of make peers -->\n"
COLUMNS = ("suite", "version", "mapped", "passed", "kinds of failures", "unexplained")
WIDTH = 130


def outcomes(suite, root, places, tests, jobs, *options):
    """What became of each test, by name."""
    code = [str(root / suite.code)]
    for other in SUITES:
        trees = other.trees(places) if other.name == suite.needs else []
        code += [str(tree / other.code) for tree in trees[:1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE), *code])}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # the order of sums, and so what is rounded
    with tempfile.TemporaryDirectory() as folder:
        found, given = Path(folder, "outcomes.json"), Path(folder, "tests")
        given.write_text("\n".join(tests))
        command = [
            sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(root), "-p", "plugin", "-p",
            "no:cacheprovider", "-n", str(jobs), "--tb=line", "--peer", suite.adapter, "--outcomes", str(found),
            *suite.options, *options, f"@{given}",
        ]  # fmt: skip
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
        if not found.exists():
            raise SystemExit(f"{suite.name}: pytest wrote no outcomes\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return json.loads(found.read_text())


def judge(suite, root, places, jobs):
    """The row of a suite, a text for each of its kinds, and its failures that none explains."""
    found = outcomes(suite, root, places, suite.files(root), jobs)
    failed = {test: result["error"] for test, result in found.items() if result["outcome"] == "failed"}
    repeated = [str(root / test) for test in failed if "::" in test]
    converted = outcomes(suite, root, places, repeated, jobs, "--conventions") if repeated else {}
    itself = outcomes(suite, root, places, repeated, jobs, "--on-itself") if repeated else {}
    counts, by_itself, unexplained = Counter(), Counter(), []
    for test, error in failed.items():
        passes = converted.get(test, {}).get("outcome") == "passed"
        kind = next((kind for kind in suite.kinds if kind.explains(test, error, passes)), None)
        counts[kind] += 1
        by_itself[kind] += itself.get(test, {}).get("outcome") != "passed"
        if kind is None or (kind.most is not None and counts[kind] > kind.most):
            unexplained.append(f"{test}: {error}")
    passed = sum(result["outcome"] == "passed" for result in found.values())
    known = [kind for kind in suite.kinds if counts[kind]]
    row = (suite.name, version_of(root), len(found), passed, len(known), len(unexplained))
    return row, [written(suite, kind, counts[kind], by_itself[kind]) for kind in known], unexplained


def written(suite, kind, tests, by_itself):
    """One kind, as an item of a list."""
    too = f", {by_itself} of them on {suite.name}'s own code too" if by_itself else ""
    settled = " With that convention exchanged they pass." if kind.convention else ""
    text = f"**{suite.name}, {kind.name}** ({tests} tests{too}; {kind.verdict}). {kind.reason}{settled}"
    return textwrap.fill(text, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


def main():
    """Print both tables, and write them between two marks of a document on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, action="append", required=True)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", help="the name of one suite")
    parser.add_argument("--jobs", default="2")
    given = parser.parse_args()
    rows, kinds, unexplained = [], [], []
    for suite in SUITES:
        if given.only and suite.adapter != given.only.lower():
            continue
        places = [place.resolve() for place in given.sources if place.is_dir()]
        trees = suite.trees(places)
        if not trees or not suite.files(trees[0]):
            version = version_of(trees[0]) if trees else "-"
            rows.append((suite.name, version, "no tests in the source distribution: set PEERS_SRC", "", "", ""))
            continue
        row, of_kinds, left = judge(suite, trees[0], places, given.jobs)
        rows, kinds, unexplained = [*rows, row], kinds + of_kinds, unexplained + left
    text = "\n".join([tabulate(rows, COLUMNS, "github"), "", *kinds, ""])
    print(text)
    print(*unexplained, sep="\n")
    if given.write and not (len(rows) == len(SUITES) and all(isinstance(row[2], int) for row in rows)):
        print(f"{given.write} stays as it is, since not all suites ran")
    elif given.write:
        document = given.write.read_text()
        before, after = document.split(BEGIN)[0], document.split(END)[1]
        given.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    raise SystemExit(main())
