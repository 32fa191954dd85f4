"""What a release says of itself in several places is the same everywhere."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

import lxt_compose

ROOT = Path(__file__).resolve().parent.parent.parent


def test_one_version():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert cited
    assert cited[1] == lxt_compose.__version__ == version("lxt_compose")


def test_the_citation_is_yaml_with_what_it_must_have():
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text("utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        assert all(part["attributes"]["label"] for part in form["body"])


def test_the_changelog_begins_with_what_is_not_released():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.match(r"# Changelog\n\n## Unreleased\n", text)
