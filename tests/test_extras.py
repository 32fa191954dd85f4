"""Packages that only some functions need: imported when called, or an error that says how they are installed."""

import math
import sys

import pytest

from lxt_compose.extras import needed


def test_what_is_installed_is_imported():
    assert needed("math", "never said") is math


def test_what_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^tables need pandas: pip install pandas$") as caught:
        needed("pandas", "tables need pandas: pip install pandas")
    assert caught.value.__cause__ is None
