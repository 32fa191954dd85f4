"""Targets of several numbers together: spans of a text, similarities."""

import pytest
import torch
from torch.testing import assert_close

from lxt_compose import targets

GENERATOR = torch.Generator().manual_seed(0)
START, END = torch.randn(4, 6, generator=GENERATOR), torch.randn(4, 6, generator=GENERATOR)
SPANS = {"start_logits": START, "end_logits": END}
TABLE = {"logits_per_image": torch.randn(3, 2, generator=GENERATOR)}


def best(allowed):
    """The best score of a span among those that are allowed, by going through all of them."""
    return torch.tensor([
        max(float(START[n, s] + END[n, e]) for s in range(6) for e in range(s, 6) if allowed(s, e)) for n in range(4)
    ])  # fmt: skip


def test_spans():
    assert_close(targets.answer()(SPANS), best(lambda s, e: True))
    assert_close(targets.answer(2)(SPANS), best(lambda s, e: s == 2))
    assert_close(targets.answer(None, 3)(SPANS), best(lambda s, e: e == 3))
    assert_close(targets.answer(1, -1)(SPANS), START[:, 1] + END[:, 5])


def test_similarities():
    table = TABLE["logits_per_image"]
    assert_close(targets.similarity(2, 1)(TABLE), table[2, 1][None])
    assert_close(targets.similarity(text=1)(TABLE), table[:, 1])
    assert_close(targets.similarity()({"logits_per_image": table[:2]}), table[:2].diagonal())


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: targets.answer(4, 2)(SPANS), "the answer ends at token 2, before its start 4"),
        (lambda: targets.answer(9)(SPANS), "there is no token 9"),
        (lambda: targets.similarity()(TABLE), "there are 3 images, but 2 texts: say which text"),
        (lambda: targets.similarity(1), "needs the text too, or neither"),
        (lambda: targets.similarity(3, 0)(TABLE), "there is no image 3"),
    ],
)
def test_errors(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
