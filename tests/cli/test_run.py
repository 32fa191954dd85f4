"""`lxt-compose run`: a file of texts, a folder of images."""

import json
import re

import pandas
import pytest
from checkpoints import save_bert, save_gpt2, save_vit
from PIL import Image

from lxt_compose import attribute
from lxt_compose.cli.command_line import main

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
TEXTS = ["a good film", "a film", "not a good film at all", "good " * 60, "a bad film"]


def run(capsys, *arguments):
    """Exit code, stdout and stderr of a command."""
    code = main(["run", *map(str, arguments), "--quiet"])
    written = capsys.readouterr()
    return code, written.out, written.err


def test_texts_of_a_file_are_explained(tmp_path, capsys):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, file, out = save_bert(tmp_path / "bert"), tmp_path / "texts.txt", tmp_path / "out"
    file.write_text("\n".join(TEXTS))
    code, said, _ = run(capsys, folder, "--texts", file, "--out", out, "--target", "positive", "--batch-size", 3)
    assert code == 0
    assert said.startswith(f"5 samples in {out}, 1 failed, complete")
    table = pandas.read_parquet(out).sort_values("sample").set_index("sample")
    assert "takes at most 40" in table["error"][3]
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    for number in (0, 1, 2, 4):
        found = attribute(model, tokenizer(TEXTS[number], return_tensors="pt"), target=2)
        assert list(table["input_ids"][number]) == tokenizer(TEXTS[number])["input_ids"]
        assert table["scores"][number] == pytest.approx(found.scores[0].numpy(), abs=1e-5)


def test_a_language_model_answers_lines_of_json(tmp_path, capsys):
    folder, file, out = save_gpt2(tmp_path / "gpt2"), tmp_path / "texts.jsonl", tmp_path / "out"
    file.write_text("\n".join(json.dumps({"question": text}) for text in TEXTS[:3]))
    code, said, _ = run(capsys, folder, "--texts", file, "--out", out, "--field", "question", "--json")
    assert code == 0
    assert json.loads(said)["samples"] == {"total": 3, "done": 3, "failed": 0}
    assert pandas.read_parquet(out)["sample"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_numbers_of_samples_are_those_of_lines(tmp_path, capsys, suffix):
    folder, file, out = save_bert(tmp_path / "bert"), tmp_path / f"texts.{suffix}", tmp_path / "out"
    lines = [TEXTS[0], "", TEXTS[1] + "\u2028film", "  ", TEXTS[2]]  # a separator of lines that ends none
    if suffix == "jsonl":
        lines = [json.dumps({"text": line}, ensure_ascii=False) if line.strip() else line for line in lines]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    code, said, _ = run(capsys, folder, "--texts", file, "--out", out)
    assert code == 0
    assert said.startswith(f"5 samples in {out}, 2 failed, complete")
    table = pandas.read_parquet(out).sort_values("sample").set_index("sample")
    assert ["the text is blank" in str(error) for error in table["error"]] == [0, 1, 0, 1, 0]
    assert len(table["input_ids"][4]) > len(table["input_ids"][0])


def test_images_of_a_folder_are_explained(tmp_path, capsys):
    folder, out = save_vit(tmp_path / "vit"), tmp_path / "out"
    images = tmp_path / "images"
    images.mkdir()
    for color in ("red", "blue"):
        Image.new("RGB", (20, 20), color).save(images / f"{color}.png")
    (images / "broken.png").write_bytes(b"no picture")
    code, _, _ = run(capsys, folder, "--images", images, "--out", out, "--target", "dog", "--keep", "relevance")
    table = pandas.read_parquet(out).set_index("sample")
    assert code == 0
    assert "UnidentifiedImageError" in table["error"][1]
    assert list(table["relevance.shape"][0]) == [3, 16, 16]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", [], "has no texts"),
        ('{"text": "a"}\n\n{"text": ', [], "line 3 of .* is no JSON"),
        ('\n{"other": "a"}', [], "line 2 of .* has no text called 'text'"),
        ('{"other": "a"}', [], "line 1 of .* has no text called 'text'; say which entry it is: --field"),
    ],
)
def test_errors(tmp_path, capsys, content, options, message):
    folder, file = save_gpt2(tmp_path / "gpt2"), tmp_path / "texts.jsonl"
    file.write_text(content)
    code, _, error = run(capsys, folder, "--texts", file, "--out", tmp_path / "out", *options)
    assert code == 2
    assert re.search(message, error)
