"""Targets of single places: the numbers that they are, and what they refuse."""

import pytest
import torch
from torch.testing import assert_close

from lxt_compose import targets

LOGITS = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
MAPS = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [targets.token, targets.frame, targets.query])
def test_a_label_at_a_place(make):
    assert_close(make(3, 1)(LOGITS), LOGITS[:, 3, 1])
    assert_close(make(-1, -1)({"logits": LOGITS}), LOGITS[:, 4, 2])
    assert_close(make(2)(LOGITS), LOGITS[:, 2].amax(-1))
    assert_close(make(2)(LOGITS[..., 0]), LOGITS[:, 2, 0])
    assert make(3, 1).__name__ == f"{make.__name__} 3, label 1"


def test_boxes_and_masks():
    boxes = torch.rand(2, 5, 4)
    for place, side in enumerate(targets.SIDES):
        assert_close(targets.box(1, side)({"logits": LOGITS, "pred_boxes": boxes}), boxes[:, 1, place])
    masks = MAPS.clone()
    masks[1, 2] = -1 - masks[1, 2].abs()
    expected = torch.stack([masks[0, 2][masks[0, 2] > 0].mean(), masks[1, 2].mean()])
    assert_close(targets.mask(2)({"masks_queries_logits": masks}), expected)


def test_pixels_and_regions():
    assert_close(targets.pixel(1, -1, 2)({"logits": MAPS}), MAPS[:, 2, 1, 5])
    assert_close(targets.pixel(1, 2)(MAPS), MAPS[:, :, 1, 2].amax(1))
    assert_close(targets.pixel(1, 2)({"predicted_depth": MAPS[:, 0]}), MAPS[:, 0, 1, 2])
    own = MAPS.argmax(1) == 1
    expected = torch.stack([MAPS[n, 1][own[n]].mean() for n in range(2)])
    assert_close(targets.region(1)(MAPS), expected)
    never = MAPS.clone()
    never[:, 1] = -9
    assert_close(targets.region(1)(never), torch.tensor([-9.0, -9.0]))
    where = torch.zeros(4, 6)
    where[1:3, 2:5] = 1
    assert_close(targets.region(2, where)(MAPS), MAPS[:, 2, 1:3, 2:5].mean((1, 2)))


def test_each_place_under_its_name():
    found = targets.each(targets.token, [0, 3], 1)
    assert list(found) == ["token 0, label 1", "token 3, label 1"]
    assert_close(found["token 3, label 1"](LOGITS), LOGITS[:, 3, 1])


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda: targets.token(5)(LOGITS), ValueError, "there is no token 5: the output has 5, 0 to 4"),
        (lambda: targets.query(0, 3)(LOGITS), ValueError, "there is no label 3: the output has 3, 0 to 2"),
        (lambda: targets.token("a"), TypeError, "place must be a whole number, got 'a'"),
        (lambda: targets.token(True), TypeError, "place must be a whole number, got True"),
        (lambda: targets.token(0, 1)(LOGITS[..., 0]), ValueError, r"targets.token\(\) was given the label 1, but"),
        (lambda: targets.token(0)({"x": LOGITS}), TypeError, r"targets.token\(\) needs logits or .* got x"),
        (lambda: targets.token(0)(MAPS), ValueError, r"2 or 3 dimensions, but this one has the shape \[2, 3, 4, 6\]"),
        (lambda: targets.box(0, "left"), ValueError, "side must be one of 'center_x', .*, got 'left'"),
        (lambda: targets.pixel(4, 0, 0)(MAPS), ValueError, "there is no row 4: the output has 4, 0 to 3"),
        (lambda: targets.region(0, torch.zeros(4, 6)), ValueError, "the region has no pixels"),
        (lambda: targets.region(0, torch.ones(3, 6))(MAPS), ValueError, r"the size \[3, 6\], but the output \[4, 6\]"),
        (lambda: targets.each(targets.token, []), ValueError, r"each\(\) was given no places"),
    ],
)
def test_errors(ask, error, message):
    with pytest.raises(error, match=message):
        ask()
