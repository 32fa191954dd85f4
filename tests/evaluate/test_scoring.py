"""Scores of explanations against what flip and leave_one_out give, for images, ids, several inputs and targets."""

import pytest
import torch
from torch import nn

from lxt_compose import attribute, evaluate
from lxt_compose.attribution.goals import read_targets
from lxt_compose.attribution.inputs import read_inputs
from lxt_compose.evaluate.scoring import Asked, Judge


class Two(nn.Module):
    """A text and a table."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mix, self.table = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids, features):
        return self.head(torch.tanh(self.mix(self.words(input_ids)).relu().mean(1) + self.table(features).relu()))


def two():
    torch.manual_seed(1)
    return Two().double().eval(), {
        "input_ids": torch.randint(0, 11, (5, 7)),
        "features": torch.randn(5, 4, dtype=torch.float64),
    }


def judged(model, inputs, score="gain", target=None, **asked):
    whole = {"baseline": "zero", "patch": None, "steps": None, "size": 3, "input": None, **asked}
    given = read_inputs(model, inputs)
    goals = read_targets(target, given.count)
    judge = Judge(model, given, goals, torch.arange(given.count), Asked(score=score, **whole))
    return judge.of(attribute(model, inputs, target=target)), judge


@pytest.mark.parametrize("name", ["input_ids", "features"])
def test_one_of_several_inputs(name):
    model, inputs = two()
    found = attribute(model, inputs)
    flip = evaluate.flip(model, inputs, found, input=name)
    torch.testing.assert_close(judged(model, inputs, input=name)[0], flip.difference)
    torch.testing.assert_close(judged(model, inputs, "insertion", input=name)[0], flip.lerf_area)
    torch.testing.assert_close(judged(model, inputs, "deletion", input=name)[0], -flip.morf_area)
    effects = evaluate.leave_one_out(model, inputs, input=name)
    expected = evaluate.correlation(found.scores[name], effects)
    torch.testing.assert_close(judged(model, inputs, "leave_one_out", input=name)[0], expected)


def test_of_several_inputs_the_mean():
    model, inputs = two()
    each = [judged(model, inputs, input=name)[0] for name in inputs]
    torch.testing.assert_close(judged(model, inputs)[0], (each[0] + each[1]) / 2)


def test_of_several_targets_the_mean():
    model, inputs = two()
    each = [judged(model, inputs, target=target)[0] for target in (0, 2)]
    torch.testing.assert_close(judged(model, inputs, target={"a": 0, "b": 2})[0], (each[0] + each[1]) / 2)


def test_the_arg_max_is_that_of_the_unchanged_samples():
    model, inputs = two()
    _, judge = judged(model, inputs)
    assert torch.equal(judge.goals.target, model(**inputs).argmax(1))


def test_steps_are_one_for_each_unit_and_at_most_32():
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.seen = nn.Linear(50, 2), 0

        def forward(self, x):
            self.seen += len(x)
            return self.head(x)

    model, x = Long().eval(), torch.randn(2, 50)
    judged(model, x, size=100)
    assert model.seen == 2 + 2 * 2 * 32 + 2  # unchanged, both orders, the explanation
    model.seen = 0
    judged(model, x, size=100, steps=5)
    assert model.seen == 2 + 2 * 2 * 5 + 2


def test_a_score_that_is_constant_agrees_with_nothing():
    model = nn.Linear(1, 2).eval()
    assert judged(model, torch.randn(3, 1), "leave_one_out")[0].tolist() == [0, 0, 0]


def test_a_function_is_asked_with_the_numbers_of_samples():
    model, inputs = two()
    seen = []

    def top(found, samples):
        seen.append(samples)
        return found.scores["input_ids"].argmax(1) == 0

    found, _ = judged(model, inputs, top, target={"a": 0, "b": 1})
    assert seen[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert found.shape == (5,)
    assert set(found.tolist()) <= {0.0, 0.5, 1.0}
    with pytest.raises(ValueError, match="score few must return a finite number for each of 5 samples, got"):
        judged(model, inputs, few)


def few(found, samples):
    return [1.0]


def test_unknown_scores_are_named():
    with pytest.raises(ValueError, match=r"one of gain, insertion, deletion, leave_one_out, or a function.*'gian'"):
        Asked("gian", 1)
