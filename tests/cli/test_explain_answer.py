"""Whole answers from the command line."""

import io
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
        ([], "nothing to explain: give --text, --texts, --image or --chat"),
        (["--text", "a", "--texts", "b", "--generate", "2"], "--text and --texts do not go together"),
        (["--text", "a", "--image", "b"], "--image with --text is for models that write: give --generate N"),
        (["--image", "b", "--generate", "2"], "need a prompt: give --text beside --image"),
        (["--text", "a", "--image", "b.png", "--generate", "2"], "holds no processor (processor_config.json)"),
        (["--texts", "none.txt", "--generate", "2"], "the texts none.txt cannot be read"),
        (["--text", "a", "--layers"], "--layers is for answers"),
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


def test_several_texts_from_a_file_and_from_standard_input(folder, capsys, tmp_path, monkeypatch):
    texts, page = tmp_path / "texts.txt", tmp_path / "page.html"
    texts.write_text("the film\n\na wonderful film\n", encoding="utf-8")
    code, out, _ = run(
        capsys,
        folder,
        "--texts",
        texts,
        "--continuation",
        " was boring",
        "--contrast",
        " never",
        "--page",
        page,
        "--json",
    )
    assert code == 0
    data = [json.loads(line) for line in out.splitlines()]
    assert [one["prompt"] for one in data] == ["the film", "a wonderful film"]
    model, tokenizer = GPT2LMHeadModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    (found,) = attribute_generation(model, "a wonderful film", " was boring", tokenizer=tokenizer)
    assert data[1]["scores"] == pytest.approx(found.scores.tolist(), abs=1e-6)
    assert page.read_text("utf-8").count('"verdict":') == 4
    monkeypatch.setattr("sys.stdin", io.StringIO("the film\n"))
    code, out, _ = run(capsys, folder, "--texts", "-", "--generate", 2, "--layers")
    assert (code, out.count("all together")) == (0, 1)


def test_an_image_beside_a_text(capsys, tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    folder = checkpoints.save_llava(tmp_path / "llava")
    image_module.new("RGB", (40, 30), (200, 40, 10)).save(tmp_path / "a.png")
    code, out, err = run(
        capsys, folder, "--text", "the film", "--image", tmp_path / "a.png", "--generate", 2, "--json",
        "--page", tmp_path / "page.html",
    )  # fmt: skip
    assert code == 0, err
    data = json.loads(out)
    assert data["source_sides"][:4] == ["image"] * 4
    assert "image" in data["sums"]
    assert "data:image/png" in (tmp_path / "page.html").read_text("utf-8")


def test_a_classifier_writes_no_texts(tmp_path, capsys):
    checkpoints.save_bert(tmp_path / "bert")
    code, _, err = run(capsys, tmp_path / "bert", "--text", "the film", "--generate", 2)
    assert code == 2
    assert "BertForSequenceClassification is no language model that writes texts" in err


def test_several_texts_of_a_classifier_are_one_page_with_an_index(tmp_path, capsys):
    folder, texts, page = tmp_path / "bert", tmp_path / "texts.txt", tmp_path / "page.html"
    checkpoints.save_bert(folder)
    texts.write_text("the film was boring\na wonderful film\n", encoding="utf-8")
    code, out, _ = run(capsys, folder, "--texts", texts, "--out", page, "--json")
    assert code == 0
    data = [json.loads(line) for line in out.splitlines()]
    assert [one["source"] for one in data] == ["the film was boring", "a wonderful film"]
    written = page.read_text("utf-8")
    assert '<li><a href="#text-2">' in written
    assert '<section id="text-2">' in written
    _, alone, _ = run(capsys, folder, "--text", "a wonderful film", "--json")
    assert json.loads(alone)["tokens"] == data[1]["tokens"]
    code, _, err = run(capsys, folder, "--texts", texts, "--out", tmp_path / "a.png")
    assert (code, "--out of several texts must end in .html, got 'a.png'" in err) == (2, True)


def test_tokens_are_texts_also_where_a_character_is_several(folder, capsys):
    _, out, _ = run(capsys, folder, "--text", "Über 東京", "--generate", 3, "--json")
    data = json.loads(out)
    assert len(data["source"]) == len(data["source_ids"])
    assert data["source"].count("東") == 3  # each of its bytes
    _, out, _ = run(capsys, folder, "--text", "東", "--continuation", " 京")
    table = out.split("comes from")[1]
    assert "東" in table
    assert "æ" not in table
    _, out, _ = run(capsys, folder, "--text", "Über 東京", "--json")
    assert [one["token"] for one in json.loads(out)["tokens"]] == data["source"]
