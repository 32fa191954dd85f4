"""README and docs: their blocks of Python run as they stand, and the commands, files and links that they name exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from lxt_compose import attribute, presets

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FOUND, ARCHITECTURES = (
    re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text("utf-8"), flags=re.M | re.S)
    for name in ("README.md", "docs/architectures.md")
)
MARKS = ("y = model(x.requires_grad_())", "get_input_embeddings", "attribute(model, tokenizer(text", "traced.save(")
README = [next(block for block in FOUND if mark in block) for mark in MARKS]


def images(folder):
    layers = [nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 5)]
    return {"model": nn.Sequential(*layers).eval(), "x": torch.randn(2, 3, 8, 8)}


def tokens(folder):
    from small_transformers import ids, llama

    given = ids()
    added = {"model.embed_tokens.weight"}
    return {"model": llama(), "ids": given, "input_ids": given, "token": 3, "other": 5, "added": added, "torch": torch}


def text(folder):
    from checkpoints import save_bert
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    save_bert(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    return {"model": model, "tokenizer": AutoTokenizer.from_pretrained(folder), "text": "the cat sat on the mat"}


def traced(folder):
    x = torch.randn(2, 6)
    return {"model": nn.Linear(6, 8).eval(), "inputs": x, "other_inputs": x.flip(0), "presets": presets}


def run(block, world):
    exec(compile(block, "the page", "exec"), world)
    return world


def test_a_composite_and_its_report(tmp_path):
    world = run(README[0], images(tmp_path))
    assert world["relevance"].shape == (2, 3, 8, 8)
    assert world["registration"].report().complete


def test_a_transformer_by_its_embeddings(tmp_path):
    pytest.importorskip("transformers")
    world = tokens(tmp_path)
    run(README[0].split("composite =")[0] + README[1], world)
    assert world["relevance"].shape == world["ids"].shape
    assert world["relevance"].any()


def test_from_a_model_to_an_answer(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    world = run(README[2], text(tmp_path))
    assert world["result"].scores.shape[0] == 1


def test_one_graph(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = traced(tmp_path)
    monkeypatch.setattr("lxt_compose.TracedAttribution.compile", lambda self: self)  # the compiler takes too long
    run(README[3], world)
    expected = attribute(world["model"], world["other_inputs"], target=[7, 1], composite="attnlrp")
    assert torch.equal(world["traced"](world["other_inputs"], target=[7, 1]).relevance, expected.relevance)
    tensors = (world["inputs"], torch.full((2,), 3))
    found = torch.export.load("explainer.pt2").module()(*tensors)["relevance"]["input"]
    assert torch.equal(found, attribute(world["model"], world["inputs"], target=3, composite="attnlrp").relevance)


def test_architectures(tmp_path):
    pytest.importorskip("transformers")
    world = run(ARCHITECTURES[0], tokens(tmp_path))
    assert torch.equal(world["relevance"], (world["embeddings"] * world["embeddings"].grad).sum(-1))
    with presets.attnlrp().register(world["model"]):
        world["logits"] = world["model"](inputs_embeds=world["embeddings"]).logits
        world["starts"] = torch.eye(world["logits"].shape[-1])[:2]
        for line in ARCHITECTURES[1].splitlines():
            kept = line if "autograd.grad" in line else line.replace("backward()", "backward(retain_graph=True)")
            run(kept, world)
    world = run(ARCHITECTURES[2], {**tokens(tmp_path), "presets": presets})
    torch.testing.assert_close(world["total"], world["logit"], rtol=1e-4, atol=1e-5)


# ---- what pages name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:\s]+)\)", page.read_text("utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_exist(page):
    files = re.findall(r"`((?:[\w-]+/)*[\w-]+\.py)\b", page.read_text("utf-8"))
    folders = [ROOT, ROOT / "lxt_compose", ROOT / "benchmarks", ROOT / "docs"]
    missing = [name for name in files if not any((folder / name).exists() for folder in folders)]
    assert not [name for name in missing if "/" in name or not list((ROOT / "lxt_compose").rglob(name))]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_that_are_named_exist(page):
    said = page.read_text("utf-8")
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.M)
    assert set(re.findall(r"(?:`|^ {4}|^)make ([a-z]+)", said, flags=re.M)) <= set(targets)
    for script, options in re.findall(r"python (benchmarks/\w+\.py)([^`|#\n]*)", said):
        source = (ROOT / script).read_text("utf-8")
        assert not [option for option in re.findall(r"--[\w-]+", options) if f'"{option}"' not in source], script


def test_command_lines_are_understood():
    from lxt_compose.cli.arguments import build_parser

    said = (ROOT / "README.md").read_text("utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(lxt-compose .*)$", said, flags=re.M)
    assert len(lines) >= 3
    for line in lines:
        assert build_parser().parse_args(shlex.split(line, comments=True)[1:])
