"""The picture of the architecture is what the code is, and no room imports one that imports it."""

import importlib.util
from pathlib import Path

import pytest

networkx = pytest.importorskip("networkx")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def picture():
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_shows_what_the_code_imports(picture):
    assert picture.pictured() == picture.described(picture.rooms()), "run: python docs/draw_architecture.py"


def test_no_room_imports_one_that_imports_it(picture):
    """Imports for typing, and inside functions, count."""
    assert list(networkx.simple_cycles(picture.rooms())) == []


def test_every_room_is_named_in_the_design(picture):
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    for name in picture.rooms():
        assert name in text, f"docs/design.md does not say what is in {name}"
