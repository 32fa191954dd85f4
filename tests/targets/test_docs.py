"""The blocks of Python in docs/heads.md run as they stand."""

import re
from pathlib import Path

import heads

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "heads.md"


def test_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = heads.made(heads.t.BertModel, heads.t.BertConfig(**heads.TEXT))
    texts = {name: {"input_ids": heads.words(1, n)} for name, n in (("first", 4), ("second", 6))}
    world = {"tagger": heads.bert("TokenClassification"), "inputs": {"input_ids": heads.words(2, 7)}}
    world |= {"encoder": encoder, **texts}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.M | re.S):
        exec(compile(block, "the page", "exec"), world)
    assert world["found"].pairs.both.shape == (4, 6)
    assert (tmp_path / "alike.html").read_text("utf-8").startswith("<!doctype html>")
