"""The blocks of Python in README.md and docs/generation.md run as they stand."""

import re
from pathlib import Path

import pytest
import torch
from trained_tokenizers import byte_bpe
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent.parent
README, *BLOCKS = (
    block
    for page in ("README.md", "docs/generation.md")
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)
    if page != "README.md" or "attribute_generation" in block
)


@pytest.mark.parametrize("blocks", [[README], BLOCKS], ids=["readme", "docs"])
def test_blocks_run(blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_bpe(), eos_token="<|endoftext|>")
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    world = {"model": GPT2LMHeadModel(config).eval(), "tokenizer": tokenizer}
    for block in blocks:
        exec(compile(block, "the page", "exec"), world)
    assert (tmp_path / "answer.html").read_text("utf-8").startswith("<!doctype html>")
    if "through" in world:
        assert world["through"][0].sums()["output"].abs().max() < 1e-5
