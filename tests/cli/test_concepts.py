"""`lxt-compose concepts`: references of units of a checkpoint or a factory's model, a table, a gallery."""

import json
import re
import sys

import pytest
import torch
from PIL import Image

from lxt_compose.cli.command_line import main
from lxt_compose.concepts import References, find_references

TEXTS = ["a good film", "a film", "not a good film at all", "good " * 60, "a bad film", "bad film"]


def run(capsys, *arguments):
    """Exit code, stdout and stderr of a command."""
    code = main(["concepts", *map(str, arguments), "--quiet"])
    written = capsys.readouterr()
    return code, written.out, written.err


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    (tmp_path / "zoo_of_concepts.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def model():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))\n"
        "def pairs():\n"
        "    torch.manual_seed(1)\n"
        "    return [(x, i % 3) for i, x in enumerate(torch.randn(10, 1, 8, 8))]\n"
        "number = 3\n"
        "class Broken(list):\n"
        "    def __getitem__(self, i):\n"
        "        if i == 2:\n"
        "            raise OSError('damaged')\n"
        "        return super().__getitem__(i)\n"
        "broken = Broken(torch.arange(5 * 64.0).reshape(5, 1, 8, 8) / 64)\n"
        "nothing = Broken()\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "zoo_of_concepts"
    sys.modules.pop("zoo_of_concepts", None)


def test_a_data_set_for_a_model_of_a_function(zoo, tmp_path, capsys):
    wanted = [f"{zoo}:model", "--data", f"{zoo}:pairs", "--units", "1", "--out", "out", "--k", 3, "--target", 1]
    code, said, _ = run(capsys, *wanted, "--show", 2, "--crop", "--pictures", "--batch-size", 4)
    assert code == 0
    module = sys.modules[zoo]
    expected = find_references(module.model().eval(), [torch.stack([x for x, _ in module.pairs()])], "1", k=3, target=1)
    kept = References.load("out/references.pt")
    assert torch.equal(kept.tops["1"].samples, expected.tops["1"].samples)
    order = expected.mean("1").argsort(descending=True)[:2].tolist()
    assert re.findall(r"^(1\[\d\])", said, flags=re.M) == [f"1[{unit}]" for unit in order]
    first = expected.of("1", order[0])[0]
    assert f"sample {first.sample} ({first.value:.3g})" in said
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert all(f"<h2>1[{unit}]</h2>" in page for unit in order)
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_it_goes_on_and_other_options_are_refused(zoo, capsys, monkeypatch):
    wanted = [f"{zoo}:model", "--data", f"{zoo}:pairs", "--units", "1", "--out", "out", "--batch-size", 4]
    assert run(capsys, *wanted)[0] == 0
    monkeypatch.setattr("lxt_compose.concepts.references.relevances", None)  # nothing is left to do
    assert run(capsys, *wanted)[0] == 0
    code, _, error = run(capsys, *wanted, "--target", 2)
    assert code == 2
    assert "out holds references for target=None, not 2; choose another folder" in error


def test_samples_that_cannot_be_read_are_named(zoo, capsys):
    wanted = [f"{zoo}:model", "--units", "1[0]", "--by", "activation", "--out", "out", "--data"]
    code, said, _ = run(capsys, *wanted, f"{zoo}:broken", "--json")
    told = json.loads(said)
    assert code == 0
    assert told["samples"] == 4
    assert told["skipped"] == ["sample 2: OSError: damaged"]
    assert sorted(best["sample"] for best in told["units"][0]["best"]) == [f"sample {n}" for n in (0, 1, 3, 4)]


def test_texts_of_a_file(tmp_path, capsys):
    pytest.importorskip("transformers")
    from checkpoints import save_bert

    folder, file, out = save_bert(tmp_path / "bert"), tmp_path / "texts.txt", tmp_path / "out"
    file.write_text("\n".join(TEXTS))
    units = "bert.encoder.layer.*.intermediate"
    code, said, _ = run(capsys, folder, "--texts", file, "--units", units, "--out", out, "--show", 2, "--crop")
    assert code == 0
    assert "line 4: ValueError: the text has 242" in said
    page = (out / "gallery.html").read_text()
    assert page.count("<h2>bert.encoder.layer.") == 2
    assert re.search(r'class="t (s )?m"', page)


def test_images_of_a_folder(tmp_path, capsys):
    pytest.importorskip("transformers")
    from checkpoints import save_vit

    folder, images = save_vit(tmp_path / "vit"), tmp_path / "images"
    images.mkdir()
    for color in ("red", "blue", "green"):
        Image.new("RGB", (20, 20), color).save(images / f"{color}.png")
    wanted = [folder, "--images", images, "--units", "vit.*.attention:heads[1]", "--out", tmp_path / "out"]
    code, said, _ = run(capsys, *wanted, "--target", "dog", "--json")
    assert code == 0
    assert {best["sample"] for unit in json.loads(said)["units"] for best in unit["best"]} == {
        "red.png", "blue.png", "green.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("number", [], "of type int, no data set with len"),
        ("nothing", [], "none of the 0 samples can be read"),
        ("pairs", ["--target", "dog"], "known by their numbers alone, got 'dog'"),
        ("pairs", ["--k", 0], "--k must be 1 or more, got 0"),
        ("missing", [], "has nothing called 'missing'"),
        ("pairs", ["--units", "9"], "no module matches '9'"),
    ],
)
def test_errors(zoo, capsys, data, options, message):
    wanted = [f"{zoo}:model", "--data", f"{zoo}:{data}", "--units", "1", "--out", "out", *options]
    code, _, error = run(capsys, *wanted)
    assert code == 2
    assert message in error


def test_no_module_and_name(zoo, capsys):
    code, _, error = run(capsys, f"{zoo}:model", "--data", "pairs", "--units", "1", "--out", "out")
    assert code == 2
    assert "'pairs' is no module:name" in error
