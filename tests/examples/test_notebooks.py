"""The notebooks run from top to bottom, what they store is what they say, and none of it is large."""

import json

import pytest
import torch
from notebooks import DPI, paths, run, run_cell, shown, write

from lxt_compose import CoverageReport, heatmap
from lxt_compose.demo import pretrained

NEEDS = {"2_photographs": pretrained.CNN_PACKAGES, "4_sentences": pretrained.ENCODER_PACKAGES}
PACKAGES = {"3_language_model": "transformers", "5_concepts": "networkx", "7_scale": "pyarrow"}

CLAIMS = {
    "1_first_steps": lambda world: (world["answers"] == world["digits"].test_labels).float().mean() > 0.95,
    "3_language_model": lambda world: world["share_on_top"] > 0.95,
    "5_concepts": lambda world: world["accuracy"] > 0.9 and (world["wished"].activations > world["wished"].first).all(),
    "6_choosing": lambda world: world["tuned"].held_out.mean() > 1.0,
    "7_scale": lambda world: len(world["rows"]) == 64 and world["again"].samples == 0,
}


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_explanations_are_complete(path):
    for package in ("sklearn", "matplotlib", PACKAGES.get(path.stem, "torch")):
        pytest.importorskip(package)
    missing = pretrained.missing(NEEDS.get(path.stem, ()))
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: {pretrained.INSTALL}")
    with torch.random.fork_rng():
        world, outputs = run(path)
    found = [getattr(value, "report", None) for value in world.values()]
    reports = [report for report in found if isinstance(report, CoverageReport)]
    assert all(report.complete for report in reports)
    assert reports or path.stem == "5_concepts"
    assert any(outputs)
    assert CLAIMS.get(path.stem, bool)(world)


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_a_notebook_is_small_and_stores_what_it_shows(path):
    notebook = json.loads(path.read_text("utf-8"))
    assert path.stat().st_size < 400_000
    assert notebook["cells"][0]["source"][0].startswith("# ")
    assert any(cell.get("outputs") for cell in notebook["cells"])
    assert all(cell["execution_count"] is None for cell in notebook["cells"] if cell["cell_type"] == "code")


def test_a_cell_returns_what_it_prints_and_the_value_of_its_last_line():
    world = {}
    cell = {"cell_type": "code", "source": ["a = 2\n", "print('one')\n", "a + 1"]}
    printed, value = run_cell(cell, world, "cell")
    assert (printed["text"], value["data"], world["a"]) == (["one\n"], {"text/plain": ["3"]}, 2)
    assert run_cell({"cell_type": "markdown", "source": ["1 / 0"]}, {}, "cell") == []
    with pytest.raises(ZeroDivisionError):
        run_cell({"cell_type": "code", "source": ["1 / 0"]}, {}, "cell")


def test_pictures_are_stored_as_png():
    pytest.importorskip("matplotlib")
    data = shown(heatmap.text(["a", "b"], [0.5, -1.0]))
    assert data["image/png"].startswith("iVBOR")
    assert DPI <= 100


def test_outputs_are_written_into_the_file(tmp_path):
    path = tmp_path / "one.ipynb"
    cells = [
        {"cell_type": "markdown", "source": ["text"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": []},
    ]
    path.write_text(json.dumps({"cells": cells}))
    _, outputs = run(path)
    write(path, outputs)
    stored = json.loads(path.read_text())["cells"]
    assert "outputs" not in stored[0]
    assert stored[1]["outputs"] == [{"output_type": "stream", "name": "stdout", "text": ["1\n"]}]
