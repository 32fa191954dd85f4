"""The blocks of Python in docs/heads.md run as they stand."""

import re
from pathlib import Path

import heads

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "heads.md"


def test_blocks_run():
    world = {"tagger": heads.bert("TokenClassification"), "inputs": {"input_ids": heads.words(2, 7)}}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.M | re.S):
        exec(compile(block, "the page", "exec"), world)
    assert world["found"].relevance.shape == (14, 7, 16)
