"""The site of the docs: its blocks of Python run as they stand, each public rule has a page, each page a place."""

import re
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import lxt_compose

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [DOCS / name for name in ("index.md", "start.md", "ideas.md", "tuning.md", "recipes.md")] + sorted(
    (DOCS / "rules").glob("*.md")
)
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(DOCS)}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), flags=re.M | re.S))
]
NAV = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]


def rules():
    """The names of the rules that users import from the top."""
    named = {name: getattr(lxt_compose, name) for name in lxt_compose.__all__}
    kinds = {name: kind for name, kind in named.items() if isinstance(kind, type) and is_dataclass(kind)}
    return sorted(n for n, kind in kinds.items() if issubclass(kind, lxt_compose.Rule) and kind is not lxt_compose.Rule)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_run(block, capsys):
    if "transformers" in block:
        pytest.importorskip("transformers")
    for library in ("torchao", "ultralytics", "pytorch_forecasting", "speechbrain"):
        if f"from {library}" in block:
            pytest.importorskip(library, reason=f"{library} is not installed")
    world = {"__name__": "page"}
    exec(compile(block, "page", "exec"), world)
    if "result" in world:
        assert world["result"].report.complete


def test_the_page_on_a_mistake_runs_as_one_program(capsys):
    page = (DOCS / "coverage.md").read_text("utf-8")
    world = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S):
        exec(compile(block, "page", "exec"), world)
    printed = capsys.readouterr().out
    for said in ("NOT complete: 3 uncovered: FusedRMSNorm.apply", "uncovered 104.1 %"):
        assert said in page
        assert said.split(" 104")[0] in printed


def test_blocks_were_found():
    assert len(BLOCKS) > 30


@pytest.mark.parametrize("name", rules())
def test_each_rule_has_a_page(name):
    page = (DOCS / "rules" / f"{name.lower()}.md").read_text("utf-8")
    assert page.startswith(f"# {name}\n\n**When.** ")
    assert f"::: lxt_compose.{name}\n" in page
    assert f"({name.lower()}.md)" in (DOCS / "rules" / "index.md").read_text("utf-8") or "ReLU" in name


def test_each_page_has_a_place_and_each_place_a_page():
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {
        str(page.relative_to(DOCS)) for page in (DOCS / "reports").glob("*.md")
    }
    notebooks = {f"examples/{path.stem}.md" for path in (ROOT / "examples").glob("*.ipynb")}
    assert set(re.findall(r"[\w/-]+\.md", NAV)) == pages | notebooks
