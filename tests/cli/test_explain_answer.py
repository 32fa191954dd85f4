"""Whole answers from the command line."""

import json

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import checkpoints
from transformers import AutoTokenizer, GPT2LMHeadModel

from lxt_compose import attribute_generation
from lxt_compose.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "gpt2"
    checkpoints.save_gpt2(path)
    return path


def run(capsys, folder, *arguments):
    code = main(["explain", str(folder), "--quiet", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_numbers(folder, capsys):
    code, out, _ = run(
        capsys, folder, "--text", "the film", "--continuation", " was boring", "--contrast", " never", "--json"
    )
    assert code == 0
    data = json.loads(out)
    model, tokenizer = GPT2LMHeadModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    (found,) = attribute_generation(model, "the film", " was boring", tokenizer=tokenizer, contrast=" never")
    assert data["scores"] == pytest.approx(found.scores.tolist(), abs=1e-6)
    before = len(data["source"])
    assert torch.allclose(torch.tensor(data["source_attributions"]), found.relevance[:, :before], atol=1e-6)
    assert data["contrast"]["scores"] == pytest.approx(found.other.scores.tolist(), abs=1e-6)
    assert data["complete"]


def test_generated_words_with_a_page_and_a_figure(folder, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    page, figure = tmp_path / "page.html", tmp_path / "figure.png"
    code, out, _ = run(
        capsys, folder, "--text", "the film", "--generate", 4, "--words", "--page", page, "--out", figure, "--ledger"
    )
    assert code == 0
    assert out.startswith("GPT2LMHeadModel, preset attnlrp: the relevance for each part of the answer")
    assert "unaccounted" in out
    assert "complete: " in out
    assert "Where the answer of GPT2LMHeadModel comes from" in page.read_text("utf-8")
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "a", "--contrast", "b"], "--contrast is for answers: give --generate N or --continuation TEXT too"),
        (["--text", "a", "--page", "p.html"], "--page is for answers"),
        (["--text", "a", "--generate", "2", "--target", "b"], "--target does not go with --generate"),
        (["--text", "a", "--generate", "2", "--page", "p.txt"], "--page must end in .html, got 'p.txt'"),
        (["--text", "a", "--generate", "2", "--out", "p.pt"], "--out of an answer must end in .html, .png"),
        (["--text", "a", "--generate", "2", "--page", "no/p.html"], "the folder of p.html does not exist: no"),
        (["--chat", "none.json", "--generate", "2"], "the chat none.json cannot be read"),
    ],
)
def test_errors(folder, capsys, arguments, message):
    code, _, err = run(capsys, folder, *arguments)
    assert code == 2
    assert message in err


def test_a_chat(folder, capsys, tmp_path):
    chat = tmp_path / "chat.json"
    chat.write_text('[{"role": "user", "content": "the film"}]')
    code, _, err = run(capsys, folder, "--chat", chat, "--continuation", " was boring")
    assert (code, "has no chat template" in err) == (2, True)
    chat.write_text('{"role": "user"}')
    code, _, err = run(capsys, folder, "--chat", chat, "--continuation", " was boring")
    assert (code, "must hold a list of messages, each with role and content" in err) == (2, True)


def test_a_classifier_writes_no_texts(tmp_path, capsys):
    checkpoints.save_bert(tmp_path / "bert")
    code, _, err = run(capsys, tmp_path / "bert", "--text", "the film", "--generate", 2)
    assert code == 2
    assert "BertForSequenceClassification is no language model that writes texts" in err
