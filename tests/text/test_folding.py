"""Names fold into patterns that stand for exactly these names; lists fit into a width."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patterns import NUMBERED, expand

from lxt_compose.text.folding import fold_names, ranges, shorten_list


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([3], "3"),
        ([3, 4], "{3,4}"),
        ([0, 2, 5, 6, 7], "{0,2,5..7}"),
        ([0, 2, 4], "{0,2,4}"),
        ([0, 2, 4, 6], "{0..6..2}"),
        ([5, 11, 17, 23, 24, 25, 26], "{5..23..6,24..26}"),
        ([9, 10, 11], "{9..11}"),
    ],
)
def test_ranges(numbers, expected):
    assert ranges(numbers) == expected
    assert expand(expected) == [str(number) for number in numbers]


@given(st.sets(st.integers(0, 60), min_size=1))
def test_ranges_hold_the_numbers(numbers):
    assert expand(ranges(sorted(numbers))) == [str(number) for number in sorted(numbers)]


@given(st.lists(NUMBERED))
def test_folded_names_are_the_names(names):
    assert Counter(name for pattern in fold_names(names) for name in expand(pattern)) == Counter(set(names))


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (27, "view, transpose, contiguous"),
        (26, "view, transpose, +1 more"),
        (13, "view, +2 more"),
        (12, "vi…, +2 more"),
    ],
)
def test_a_shortened_list_says_how_many_more(width, expected):
    assert shorten_list(["view", "transpose", "contiguous"], width) == expected
