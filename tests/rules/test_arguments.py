"""Arguments of rules: numbers are no flags, and flags are no numbers."""

from dataclasses import fields, is_dataclass

import pytest

import lxt_compose.rules
from lxt_compose import ZBox

ALL = [
    kind
    for kind in map(vars(lxt_compose.rules).get, lxt_compose.rules.__all__)
    if isinstance(kind, type) and is_dataclass(kind)
]


@pytest.mark.parametrize("kind", [rule for rule in ALL if "zero_bias" in {field.name for field in fields(rule)}])
@pytest.mark.parametrize("given", [1e-3, 1, "no", None])
def test_numbers_are_no_flags(kind, given):
    with pytest.raises(TypeError, match="zero_bias must be True or False, got"):
        kind(zero_bias=given)


@pytest.mark.parametrize("kind", ALL)
def test_flags_are_no_numbers(kind):
    needed = {"low": -1.0, "high": 1.0} if kind is ZBox else {}
    for field in fields(kind):
        if field.name in ("low", "high", "gamma", "alpha", "beta", "epsilon", "reference"):
            with pytest.raises(TypeError, match=f"{field.name} must be"):
                kind(**{**needed, field.name: True})
