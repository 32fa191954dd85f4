"""The index of traps names tests that are there, and each has one."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = [
    row.strip("| ").split(" | ") for row in (ROOT / "docs/traps.md").read_text("utf-8").splitlines() if "tests/" in row
]


@pytest.mark.parametrize(("name", "what", "tests"), ROWS, ids=[row[0] for row in ROWS])
def test_each_trap_names_a_test(name, what, tests):
    found = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", tests)
    assert found, what
    for file, test in found:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        assert not test or test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (name, test)
