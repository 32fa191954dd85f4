"""Names with numbers, and the names that a folded pattern stands for."""

import itertools
import re

from hypothesis import strategies as st

NUMBERED = st.lists(
    st.one_of(st.integers(0, 4).map(str), st.sampled_from(["a", "mlp", "conv1", "conv2", "x03", "x", "07", ""])),
    max_size=5,
).map(".".join)


def expand(pattern):
    """The names of a pattern, written from the notation alone: {a,b..c,d..e..step} takes each number in turn."""
    choices = []
    for index, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        if index % 2 == 0:
            choices.append([part])
            continue
        numbers = []
        for item in part.split(","):
            first, *rest = map(int, item.split(".."))
            last, step = (rest + [first, 1][len(rest) :])[:2]
            numbers += range(first, last + 1, step)
        assert len(numbers) > 1, f"{pattern}: braces around one number"
        choices.append([str(number) for number in numbers])
    return ["".join(choice) for choice in itertools.product(*choices)]
