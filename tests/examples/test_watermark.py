"""The example of a loss on relevance, on a slice of the data: what a model answers no longer depends on the mark."""

import torch
from watermark import CLASSES, Settings, marked, places, results, share_on, train

from lxt_compose.demo.data import Digits, load_digits


def test_watermarks_tell_the_class_and_nothing_else():
    classes = torch.arange(CLASSES)
    where = places(classes)
    assert where.flatten(1).sum(1).eq(1).all()
    assert len(where.flatten(1).int().argmax(1).unique()) == CLASSES
    image = torch.zeros(CLASSES, 1, 8, 8)
    assert torch.equal(marked(image, classes), where.float())
    assert torch.equal(share_on(where, where + image + 1).mul(65).round(), torch.full((CLASSES,), 2.0))


def test_a_penalty_on_its_relevance_keeps_a_model_from_reading_the_watermark():
    digits = load_digits()
    part = Digits(
        digits.train_images[:320], digits.train_labels[:320], digits.test_images[:200], digits.test_labels[:200]
    )
    usual, penalized = (results(train(part, penalty, Settings(4, 32)), part) for penalty in (0.0, 10.0))
    own, other = "watermark of its class", "watermark of another class"
    assert usual[own] > usual[other] + 0.2
    assert abs(penalized[own] - penalized[other]) < 0.05
    assert penalized["relevance on the watermark"] < 0.05 < 0.1 < usual["relevance on the watermark"]
