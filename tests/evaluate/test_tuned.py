"""What tuning tells: held-out scores by hand, noise in words, tables."""

import sys

import pytest
import torch

from lxt_compose import presets
from lxt_compose.evaluate import Candidate, Tuning


def tuning(values, fold, failed=(), **arguments):
    """A tuning of candidates a, b, c, ... whose scores are these rows; the first is called attnlrp."""
    values = torch.as_tensor(values, dtype=torch.float64)
    names = ["attnlrp", *"bcdefgh"[: len(values) - 1]]
    candidates = tuple(
        Candidate(name, presets.attnlrp(), "grid", {key: given[place] for key, given in arguments.items()})
        for place, name in enumerate(names)
    )
    for name in failed:
        values[names.index(name)] = torch.nan
    reasons = dict.fromkeys(failed, "RuleError: no")
    return Tuning(candidates, values, torch.tensor(fold), "gain", reasons, 0.95, 0)


def test_each_fold_is_scored_by_the_best_of_the_others():
    found = tuning([[1, 1, 9, 9.0], [2, 2, 3, 3.0]], [0, 0, 1, 1])
    # without fold 0 attnlrp has 9 and b 3; without fold 1 it is 1 and 2
    assert [candidate.name for candidate in found.chosen] == ["attnlrp", "b"]
    assert found.held_out.tolist() == [1, 1, 3, 3]
    assert found.best.name == "attnlrp"
    assert found.composite is found.candidates[0].composite
    assert found.means.tolist() == [5, 2.5]


def test_what_tuning_is_worth():
    found = tuning([[1.0] * 6, [3.0] * 6], [0, 1, 2] * 2)
    assert found.over("attnlrp") == (2.0, 2.0, 2.0)
    assert found.over("b") == (0.0, 0.0, 0.0)
    assert "held out, over attnlrp, the default: +2 (+2 to +2)" in found.verdict()
    with pytest.raises(KeyError, match="no candidate is called 'x'; there are attnlrp, b"):
        found.over("x")


def noisy(*means, n=30):
    generator = torch.Generator().manual_seed(0)
    return torch.tensor(means)[:, None] + torch.randn(len(means), n, generator=generator)


def test_noise_is_told_in_words():
    folds = [place % 5 for place in range(30)]
    some = tuning(noisy(0.0, 0.05, -5.0), folds)
    assert {candidate.name for candidate in some.within_noise} == {"attnlrp", "b"}
    assert some.within_noise[0] is some.best
    assert "noise: 1 of 2 others cannot be told from the best (95% confidence): " in some.verdict()
    every = tuning(noisy(0.0, 0.05), folds)
    assert "all 2 are within the noise of each other (95% confidence): take the simplest, or more samples" in str(every)
    none = tuning(noisy(0.0, 5.0), folds)
    assert "the lead over each of the 1 others is larger than noise" in none.verdict()
    assert "nothing to compare with" in tuning(noisy(0.0), folds).verdict()
    many = tuning(noisy(*[0.0] * 7), folds)
    assert "within the noise of each other" in many.verdict()
    crowd = tuning(noisy(*[0.0] * 7, -9.0), folds)
    assert "6 of 7 others" in crowd.verdict()
    assert " and 2 more" in crowd.verdict()


def test_a_table_with_the_best_first_and_failures_last():
    found = tuning(noisy(0.0, 9.0, 3.0), [place % 5 for place in range(30)], failed=["c"])
    lines = str(found).splitlines()
    assert lines[0].split()[:2] == ["candidate", "gain"]
    assert lines[2].startswith("b ")
    assert lines[2].endswith("best")
    assert lines[4].split(None, 2) == ["c", "failed", "RuleError: no"]
    assert "<pre" in found._repr_html_()


def test_a_data_frame():
    pandas = pytest.importorskip("pandas")
    found = tuning(noisy(0.0, 9.0, 3.0), [place % 5 for place in range(30)], failed=["c"], gamma=[0.0, 0.1, 0.2])
    table = found.to_dataframe()
    assert isinstance(table, pandas.DataFrame)
    assert list(table["candidate"]) == ["b", "attnlrp", "c"]
    assert list(table["gamma"]) == [0.1, 0.0, 0.2]
    assert list(table["within noise"]) == [True, False, False]
    assert list(table["folds"]) == [5, 0, 0]
    assert table["below best"][0] == 0
    assert table["score"][1] == pytest.approx(float(found.means[0]))
    assert table["low"][0] < table["score"][0] < table["high"][0]


def test_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_dataframe\(\) needs pandas"):
        tuning([[0.0, 1.0]], [0, 1]).to_dataframe()
