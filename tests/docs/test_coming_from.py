"""What the table for users of other libraries names here exists."""

import operator
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import lxt_compose
from lxt_compose import rules

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "coming-from.md"
ROWS = [line.split("|")[2] for line in PAGE.read_text().splitlines() if re.match(r"\| `.* \| .* \|$", line)]
CODE = sorted({code for row in ROWS for code in re.findall(r"`([^`]+)`", row)})
# Words that are no expressions: an argument, a method, what is made by register().
WORDS = {
    "epsilon", "from_torch", "apply(model)", "registration.report()", "ledger=True", 'layers=["name"]', "contrast=",
    "captum.attr", 'targets="words"', 'of="log_probability"',
}  # fmt: skip


def test_the_table_was_read():
    assert len(ROWS) > 35
    assert len(CODE) > 50


@pytest.mark.parametrize("code", [code for code in CODE if code not in WORDS])
def test_what_it_names_exists(code):
    names = {name: getattr(lxt_compose, name) for name in lxt_compose.__all__}
    found = eval(code, {**names, "rules": rules, "torch": torch, "nn": nn, "operator": operator})
    assert (found is None) == code.endswith(".remove()")
