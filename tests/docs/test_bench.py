"""What `make bench` writes: medians and ranges of several runs, failures, and nothing outside of its marks."""

import json
import sys
from pathlib import Path

import bench
import conserving
import growth
import pytest
import torch
from marks import between

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "measured.md"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1.20 / 2.0", "1.00 / 2.0", "1.10 / 2.0"], "1.10 (1.00 to 1.20) / 2.0"),
        (["-", "-", "-"], "-"),
        (["1.5", "-"], "1.5 | -"),
        (["3e-07", "1e-07"], "1e-07 (1e-07 to 3e-07)"),
        (["98 %", "99 %", "97 %"], "98 (97 to 99) %"),
        (["AlphaBeta(2.0, 1.0)"] * 3, "AlphaBeta(2.0, 1.0)"),
    ],
)
def test_cells_of_several_runs(cells, expected):
    assert bench.in_one(cells) == expected


def table(*rows):
    return {"title": "a table", "headers": ["rule", "time"], "rows": [list(row) for row in rows]}


def test_rows_belong_to_their_names_whatever_their_order():
    runs = [
        [table(("a", "1.0"), ("b", "2.0"))],
        [table(("b", "4.0"), ("a", "1.0")), {"note": "x: no"}],
        [table(("a", "1.0"), ("b", "3.0"))],
    ]
    tables, notes = bench.merged(runs)
    assert tables[0]["rows"] == [["a", "1.0"], ["b", "3.0 (2.0 to 4.0)"]]
    assert notes == ["x: no"]


def test_a_block_names_command_machine_failures_and_peers_that_failed():
    text = bench.block(
        "rules.py",
        [[table(("a", "1.0")), {"note": "zennit.rules: ImportError: no"}]],
        ["exit status 1: boom"],
        "a machine",
    )
    assert text.startswith("`python benchmarks/rules.py`, ")
    assert "runs: 1. a machine." in text
    assert "| a      | 1.0    |" in text
    assert "* `zennit.rules: ImportError: no`" in text
    assert "The command failed: `exit status 1: boom`" in text


def test_a_script_that_fails_is_told_and_its_tables_are_kept(tmp_path, monkeypatch):
    lines = [
        "import json, os",
        f"open(os.environ['{bench.KEPT}'], 'a').write(json.dumps({json.dumps(table(('a', '1.0')))}) + chr(10))",
        "raise SystemExit('out of luck')",
    ]
    (tmp_path / "broken.py").write_text("\n".join(lines))
    monkeypatch.setattr(bench, "HERE", tmp_path)
    entries, failure = bench.run("broken.py", [])
    assert entries == [table(("a", "1.0"))]
    assert failure == "exit status 1: out of luck"
    assert sys.executable


def test_versions_name_what_is_not_there(tmp_path):
    assert "zennit not there" in bench.versions(str(tmp_path))
    assert "torch " in bench.versions(None)


def test_only_what_is_between_the_marks_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- end of x -->\nafter\n")
    between(page, "x", lambda text: f"{text} and new")
    assert page.read_text() == "before\n<!-- x -->\n\nold and new\n\n<!-- end of x -->\nafter\n"
    with pytest.raises(ValueError, match="needs the marks <!-- y --> and <!-- end of y -->, once each"):
        between(page, "y", str)


@pytest.mark.parametrize("command", bench.COMMANDS)
def test_each_command_has_its_marks_and_its_options(command):
    assert PAGE.read_text("utf-8").count(f"<!-- bench: {command} -->") == 1
    script, *own = command.split()
    source = (bench.HERE / script).read_text("utf-8")
    options = [name for name in (*own, *bench.COMMANDS[command].split()) if name.startswith("--")]
    assert not [name for name in options if f'"{name}"' not in source]


def test_folders_of_this_machine_are_not_written():
    text = bench.block("peers.py", [[{"note": "lxt: no (/home/me/lib/python3/site-packages/lxt/core.py)"}]], [], "here")
    assert "lxt: no (lxt/core.py)" in text


def test_sums_tell_relevance_that_sums_from_what_does_not():
    model = conserving.alone("llama", "causal")
    assert conserving.verdict(conserving.ours, model) == "sums"
    assert conserving.verdict(lambda given: conserving.total(given, divided=True), model) == "other"
    assert conserving.verdict(lambda given: conserving.lxt(given, {"llama": None}), model) == "raised"


def test_growth_compares_the_same_model_at_each_size():
    jobs = growth.jobs_for(layers=1, width=64, tokens=3)
    plain, ours = jobs[growth.BASE](), jobs["attnlrp"]()
    assert plain.shape == ours.shape == (1, 3, 64)
    assert not torch.allclose(plain, ours)
