"""Relevance handed on through the answer, against a walk along every path, token by token."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_transformers import gpt2, ids, t5

from lxt_compose import attribute_generation
from lxt_compose.generation.handing_on import hand_on


def walked(row, rest, each, each_rest, hops, shares):
    """The slow way: what a token has is shared out, one token and one hop at a time."""
    first, count = each.shape[1] - len(each), len(each)
    row, rest = row.clone(), float(rest)
    for _ in range(count + 1 if hops is None else hops):
        arrived = row.clone()
        arrived[first:] = 0
        for u in range(count):
            parts = [*each[u].tolist(), float(each_rest[u])]
            weights = [max(part, 0.0) for part in parts] if shares == "positive" else parts
            total, amount = sum(weights), float(row[first + u])
            if total == 0:
                arrived[first + u] += amount
                continue
            for j, weight in enumerate(weights[:-1]):
                arrived[j] += amount * weight / total
            rest += amount * weights[-1] / total
        row = arrived
    return row, rest


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sources=st.integers(1, 4),
    count=st.integers(1, 5),
    hops=st.sampled_from([None, 0, 1, 2]),
    shares=st.sampled_from(["positive", "signed"]),
)
def test_it_is_what_walking_along_every_path_gives(seed, sources, count, hops, shares):
    generator = torch.Generator().manual_seed(seed)
    each = torch.randn(count, sources + count, generator=generator, dtype=torch.float64).round(decimals=1)
    each[:, sources:] = each[:, sources:].tril(-1)
    rest = torch.randn(count, generator=generator, dtype=torch.float64).round(decimals=1)
    if shares == "signed":  # shares of a score of 0 up to rounding are anything
        assume(bool(((each.sum(1) + rest).abs() > 0.05).all()))
    found = hand_on(each, {"rest": rest}, each, {"rest": rest}, hops=hops, shares=shares)
    scale = max(1.0, float(found.through.abs().max()), float(found.relevance.abs().max()))
    for t in range(count):
        row, left = walked(each[t], rest[t], each, rest, hops, shares)
        assert (found.relevance[t] - row).abs().max() < 1e-10 * scale
        assert abs(float(found.rest["rest"][t]) - left) < 1e-10 * scale
    lost = found.relevance.sum(1) + found.rest["rest"] - each.sum(1) - rest
    assert lost.abs().max() < 1e-10 * scale
    if shares == "positive":
        assert found.gain <= 1 + 1e-12


@pytest.mark.parametrize("make", [gpt2, t5], ids=["gpt2", "t5"])
@pytest.mark.parametrize("shares", ["positive", "signed"])
def test_of_a_model_all_goes_to_the_prompt_and_into_the_account(make, shares):
    (answer,) = attribute_generation(make(), ids(1, 5), (13, 4, 14, 22, 9), ledger=True)
    found = answer.handed_on(shares=shares)
    assert torch.equal(found.scores, answer.scores)
    sums = found.sums()
    assert sums["output"].abs().max() < 1e-12
    assert sums["unaccounted"].abs().max() < 1e-9
    assert (sum(sums.values()) - answer.scores).abs().max() < 1e-10
    assert "softmax" in sums
    assert torch.equal(found.relevance[0], answer.relevance[0])  # the first token has none before it
    assert f"handed on all the way by {shares} shares" in found.ran


def test_through_tells_what_each_token_has_handed_on():
    (answer,) = attribute_generation(gpt2(), ids(1, 5), (13, 4, 14))
    found = answer.handed_on(1)
    assert torch.allclose(found.through, answer.relevance[:, 5:])
    assert "1 hop by" in found.ran
    nothing = answer.handed_on(0)
    assert torch.equal(nothing.relevance, answer.relevance)
    assert not nothing.through.any()


def test_a_token_that_nothing_speaks_for_keeps_what_it_has():
    each = torch.tensor([[-1.0, 0, 0], [2.0, 3.0, 0]])
    rest = torch.zeros(2)
    found = hand_on(each, {"rest": rest}, each, {"rest": rest}, hops=None, shares="positive")
    assert found.relevance.tolist() == [[-1.0, 0, 0], [2.0, 3.0, 0]]


def test_contrasts_and_batches_are_handed_on_too():
    found = attribute_generation(gpt2(), [[3, 4], [5, 6]], [[7, 8], [9]], contrast=[[8, 9], [10]])
    handed = found.handed_on()
    assert torch.equal(handed[0].other.relevance, found[0].other.handed_on().relevance)
    assert not handed[0].relevance[:, 2:].any()


def test_errors():
    (spans,) = attribute_generation(gpt2(), [3, 4], [7, 8], targets="all")
    (answer,) = attribute_generation(gpt2(), [3, 4], [7, 8])
    with pytest.raises(ValueError, match="only spans were explained"):
        spans.handed_on()
    with pytest.raises(ValueError, match="shares must be one of 'positive', 'signed', got 'all'"):
        answer.handed_on(shares="all")
    with pytest.raises(TypeError, match=r"hops must be None or a whole number, got 1\.5"):
        answer.handed_on(1.5)
    with pytest.raises(ValueError, match="from 0 on, got -1"):
        answer.handed_on(-1)
