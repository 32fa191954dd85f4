"""Heads that answer at many places, and embeddings, from the command line."""

import io
import json

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import checkpoints
import transformers as t
from small_transformers import SMALL
from trained_tokenizers import wordpiece

from lxt_compose import attribute, attribute_outputs, attribute_similarity, targets
from lxt_compose.cli import main
from lxt_compose.cli.heads import target_at

WORDS = {"id2label": {0: "O", 1: "PER", 2: "LOC"}, "label2id": {"O": 0, "PER": 1, "LOC": 2}}


def saved(path, kind, **settings):
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=wordpiece(), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
    config = t.BertConfig(
        **{**SMALL, "vocab_size": len(tokenizer)}, pad_token_id=0, max_position_embeddings=40, **settings
    )
    return checkpoints.save(kind, config, path, tokenizer)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("checkpoints") / "tagger", t.BertForTokenClassification, **WORDS)


@pytest.fixture(scope="module")
def embeds(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("checkpoints") / "embeds", t.BertModel)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "a.png"
    pixels = torch.randint(0, 256, (30, 40, 3), generator=torch.Generator().manual_seed(0)).byte()
    pytest.importorskip("PIL.Image").fromarray(pixels.numpy()).save(path)
    return path


def run(capsys, command, folder, *arguments):
    code = main([command, str(folder), "--quiet", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_all_labels_of_a_tagger(tagger, capsys, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = run(capsys, "explain", tagger, "--text", "the film", "--outputs", "--json", "--page", page)
    assert code == 0, err
    data = json.loads(out)
    model, tokenizer = (
        t.BertForTokenClassification.from_pretrained(tagger).eval(),
        t.AutoTokenizer.from_pretrained(tagger),
    )
    (found,) = attribute_outputs(model, dict(tokenizer("the film", return_tensors="pt")), processor=tokenizer)
    assert data["scores"] == pytest.approx(found.scores.tolist(), abs=1e-6)
    assert torch.allclose(torch.tensor(data["source_attributions"]), found.relevance[:, :4], atol=1e-6)
    assert data["target"] == list(found.sources.tokens[-4:])
    assert set(data["target"]) <= {"O", "PER", "LOC"}
    assert "Where the answer of BertForTokenClassification comes from" in page.read_text("utf-8")


def test_several_texts_are_lines(tagger, capsys, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("the film\na film\n", encoding="utf-8")
    code, out, _ = run(capsys, "explain", tagger, "--texts", texts, "--outputs", "--json")
    assert code == 0
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["the film", "a film"]


def test_one_place_of_many(tagger, capsys, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = run(
        capsys, "explain", tagger, "--text", "the film", "--at", "token 2", "--target", "PER", "--json", "--out", page
    )
    assert code == 0, err
    data = json.loads(out)
    model, tokenizer = (
        t.BertForTokenClassification.from_pretrained(tagger).eval(),
        t.AutoTokenizer.from_pretrained(tagger),
    )
    found = attribute(model, dict(tokenizer("the film", return_tensors="pt")), target=targets.token(2, 1))
    assert [one["score"] for one in data["tokens"]] == pytest.approx(found.scores[0].tolist(), abs=1e-6)
    assert data["title"].startswith("PER at token 2: ")
    assert "What the model answers" not in page.read_text("utf-8")
    code, out, _ = run(capsys, "explain", tagger, "--text", "the film", "--at", "token 2")
    assert (code, "the relevance for token 2: " in out) == (0, True)


def test_a_question_about_another_text(capsys, tmp_path):
    folder = saved(tmp_path / "qa", t.BertForQuestionAnswering)
    asked = ("--text", "the film", "--text-pair", "a wonderful film")
    code, out, err = run(capsys, "explain", folder, *asked, "--outputs", "--json")
    assert code == 0, err
    assert [row["name"].rpartition(" ")[0] for row in json.loads(out)["rows"]] == ["start at token", "end at token"]
    assert json.loads(out)["source"].count("[SEP]") == 2
    code, out, _ = run(capsys, "explain", folder, *asked, "--at", "answer 3 4", "--json")
    assert (code, json.loads(out)["title"].startswith("answer 3 to 4: ")) == (0, True)


def test_things_in_an_image(image, capsys, tmp_path):
    config = t.YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=[16, 16],
        patch_size=4, num_detection_tokens=4, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    folder = checkpoints.save(t.YolosForObjectDetection, config, tmp_path / "yolos")
    t.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    code, out, err = run(capsys, "explain", folder, "--image", image, "--outputs", "--threshold", "0.1", "--json")
    assert code == 0, err
    data = json.loads(out)
    assert data["source_sides"] == ["image"] * 16
    assert 1 <= len(data["scores"]) <= 4
    code, out, _ = run(capsys, "explain", folder, "--image", image, "--at", "box 1 width")
    assert (code, "the relevance for width of query 1: " in out) == (0, True)
    code, _, err = run(capsys, "explain", folder, "--image", image, "--outputs", "--threshold", "0.999")
    assert (code, "nothing is detected: the most likely thing" in err) == (2, True)


def test_the_pairs_of_two_texts(embeds, capsys, tmp_path):
    page, figure = tmp_path / "page.html", tmp_path / "pairs.png"
    asked = ("--first", "the film", "--second", "a wonderful film")
    code, out, err = run(capsys, "similarity", embeds, *asked, "--pairs", "--out", page, "--json")
    assert code == 0, err
    data = json.loads(out)
    model, tokenizer = t.BertModel.from_pretrained(embeds).eval(), t.AutoTokenizer.from_pretrained(embeds)
    found = attribute_similarity(model, "the film", "a wonderful film", tokenizer=tokenizer, pairs=True)
    assert data["similarity"] == pytest.approx(found.similarity, abs=1e-6)
    assert data["second"]["scores"] == pytest.approx(found.scores[1].tolist(), abs=1e-6)
    assert torch.allclose(torch.tensor(data["pairs"]), found.pairs.both.float(), atol=1e-6)
    assert "Which goes with which" in page.read_text("utf-8")
    pytest.importorskip("matplotlib")
    code, out, _ = run(
        capsys, "similarity", embeds, *asked, "--pairs", "--out", figure, "--ledger", "--measure", "dot", "--words"
    )
    assert (code, figure.read_bytes()[:4]) == (0, b"\x89PNG")
    assert "unaccounted" in out
    assert "together" in out


def test_pairs_of_a_file_are_lines(embeds, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the film\ta film\n\nboring\twonderful\n"))
    code, out, _ = run(capsys, "similarity", embeds, "--file", "-", "--json", "--out", tmp_path / "a.html")
    assert code == 0
    assert [json.loads(line)["first"]["tokens"][1] for line in out.splitlines()] == ["the", "boring"]
    assert (tmp_path / "a.html").read_text("utf-8").count("<section>") == 2


def test_two_images(image, capsys, tmp_path):
    config = t.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=4
    )
    folder = checkpoints.save(t.ViTModel, config, tmp_path / "vit")
    t.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    code, out, err = run(capsys, "similarity", folder, "--images", image, image, "--json")
    assert code == 0, err
    data = json.loads(out)
    assert data["similarity"] == pytest.approx(1, abs=1e-5)
    assert data["first"]["scores"] == pytest.approx(data["second"]["scores"], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "a", "--outputs", "--layers"], "--layers does not go with --outputs"),
        (["--text", "a", "--outputs", "--target", "b"], "--target does not go with --generate, --continuation and"),
        (["--text", "a", "--outputs", "--words"], "--words does not go with --outputs"),
        (["--text", "a", "--threshold", "0.2"], "--threshold is for --outputs"),
        (["--text", "a", "--text-pair", "b", "--generate", "2"], "--text-pair does not go with --generate"),
        (["--image", "a", "--text-pair", "b", "--outputs"], "--text-pair goes with --text"),
        (["--text", "a", "--at", "token"], "--at is one of 'token 3', .* got 'token'"),
        (["--text", "a", "--at", "word 3"], "--at is one of 'token 3', .* got 'word 3'"),
        (["--text", "a", "--at", "mask 3", "--target", "PER"], "--target does not go with --at 'mask 3'"),
        (["--text", "a", "--at", "token 2", "--against", "PER"], "--against does not go with --at"),
        (["--text", "a", "--at", "token 9"], "there is no token 9: the output has 3, 0 to 2"),
        (["--text", "a", "--at", "token 2", "--target", "ORG"], "no class is called 'ORG'; classes: O, PER, LOC"),
        (["--text", "", "--generate", "2"], "no language model that writes texts"),
    ],
)
def test_errors(tagger, capsys, arguments, message):
    code, _, err = run(capsys, "explain", tagger, *arguments)
    assert code == 2
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --first and --second, --file, or --images"),
        (["--first", "a"], "give both --first and --second"),
        (["--first", "a", "--second", "b", "--file", "c"], "--file does not go with --first and --second"),
        (["--file", "none.txt"], "the pairs none.txt cannot be read"),
        (["--first", "a", "--second", "b", "--out", "a.txt"], "--out must end in .html, .png, .pdf or .svg"),
        (["--first", "a", "--second", "b", "--out", "no/a.html"], "the folder of --out does not exist: no"),
    ],
)
def test_errors_of_similarity(embeds, capsys, arguments, message):
    code, _, err = run(capsys, "similarity", embeds, *arguments)
    assert (code, message in err) == (2, True), err


def test_lines_that_are_no_pairs(embeds, capsys, tmp_path):
    pairs = tmp_path / "pairs.txt"
    for text, message in (("a\tb\nc\n", "line 2 of .* must hold two texts"), ("\n", "holds no pairs")):
        pairs.write_text(text, encoding="utf-8")
        code, _, err = run(capsys, "similarity", embeds, "--file", pairs)
        assert code == 2
        with pytest.raises(ValueError, match=message):
            raise ValueError(err)


def test_places_by_name():
    assert target_at("pixel 5, 7", 2).__name__ == "pixel 5, 7, label 2"
    assert target_at("token -1", None).__name__ == "token -1"
    assert target_at("box 3 width", None).__name__ == "width of query 3"
    assert target_at("region 2", None).__name__ == "region of label 2"
    with pytest.raises(ValueError, match="side must be one of"):
        target_at("box 3 depth", None)
