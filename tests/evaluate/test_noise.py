"""What is noise: intervals that hold, and a set of candidates that holds the true best as often as it says."""

import math

import pytest
import torch

from lxt_compose.evaluate.noise import Resampled


def drawn(seed, *means, n=30, shared=1.0, own=1.0):
    """Values of methods of these true means on the same samples, whose own difficulty they share."""
    generator = torch.Generator().manual_seed(seed)
    sample = shared * torch.randn(n, generator=generator, dtype=torch.float64)
    noise = own * torch.randn(len(means), n, generator=generator, dtype=torch.float64)
    return torch.tensor(means, dtype=torch.float64)[:, None] + sample + noise


def test_deviations_have_the_spread_of_a_mean():
    values = drawn(0, 1.0, 3.0, n=40)
    found = Resampled(values, draws=20000)
    expected = values.std(1) / math.sqrt(40)
    torch.testing.assert_close(found.deviations.std(0), expected, rtol=0.03, atol=0)
    low, high = found.interval(0.95)
    torch.testing.assert_close(high - low, 2 * 1.96 * expected, rtol=0.08, atol=0)
    torch.testing.assert_close(found.means, values.mean(1))


def test_the_same_however_many_are_held_at_a_time(monkeypatch):
    values = drawn(1, 0.0, 1.0)
    whole = Resampled(values, seed=3)
    monkeypatch.setattr("lxt_compose.evaluate.noise._AT_A_TIME", 300)
    parts = Resampled(values, seed=3)
    assert torch.equal(whole.means, parts.means)
    torch.testing.assert_close(parts.deviations.std(0), whole.deviations.std(0), rtol=0.1, atol=0)
    assert parts.deviations.shape == whole.deviations.shape == (2000, 2)


def test_equal_methods_are_all_kept_nearly_always_and_far_ones_never():
    """Of 200 tables of five equal methods, the one that is 'the true best' is ruled out in some 5 %."""
    lost = sum(not bool(Resampled(drawn(s, 0, 0, 0, 0, 0), draws=300).may_be_best(0.95)[2]) for s in range(200))
    assert lost <= 20
    kept = [Resampled(drawn(s, 0, 0.1, 3), draws=300).may_be_best(0.95).tolist() for s in range(20)]
    assert kept == [[False, False, True]] * 20


def test_what_samples_share_is_no_noise():
    """Paired: the samples' own difficulty is a hundred times the difference, and is in both."""
    values = drawn(2, 0.0, 0.5, shared=50.0, own=0.3)
    assert Resampled(values).may_be_best(0.95).tolist() == [False, True]
    low, high = Resampled(values).interval(0.95)
    assert low[1] < high[0]  # the intervals of the means overlap all the same


def test_a_best_without_noise():
    base = drawn(3, 0.0)[0]
    assert Resampled(torch.stack([base, base, base + 0.25])).may_be_best(0.95).tolist() == [False, False, True]
    assert Resampled(torch.stack([base, base])).may_be_best(0.95).tolist() == [True, True]
    assert Resampled(torch.zeros(3, 5).double()).may_be_best(0.95).tolist() == [True] * 3


@pytest.mark.parametrize("confidence", [0.5, 0.99])
def test_more_confidence_keeps_more(confidence):
    values = drawn(4, *[0.1 * step for step in range(10)])
    kept = int(Resampled(values).may_be_best(confidence).sum())
    assert kept < 5 if confidence == 0.5 else kept > 5
