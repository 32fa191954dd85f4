"""Each row of an explained answer is what attribute() gives for that token alone, and it adds up to its score."""

import pytest
import torch
from small_transformers import Ahead, _made, gpt2, ids, llama, t5
from transformers import BartConfig, BartForConditionalGeneration, MambaConfig, MambaForCausalLM

from lxt_compose import (
    AlphaBeta,
    AttributionError,
    Composite,
    Epsilon,
    Gamma,
    NotFiniteError,
    ZPlus,
    attribute,
    attribute_generation,
    presets,
)
from lxt_compose.rules import SoftmaxTaylor
from lxt_compose.torch_internals import is_batched

PROMPT, ANSWER = ids(1, 5), (13, 4, 14, 22)
WHOLE = torch.cat([PROMPT[0], torch.tensor(ANSWER)])
EXACT = 1e-10


def alone(model, place, composite="attnlrp", of="logit", whole=WHOLE):
    """The relevance of the token at a place of a sequence, from a pass of its own on those before it."""
    target = int(whole[place])
    if of == "log_probability":
        target = log_probability_at(-1, target)
    return attribute(model, whole[None, :place], target=target, composite=composite)


def log_probability_at(place, token):
    return lambda output: output.logits[:, place].log_softmax(-1)[:, token]


def assert_rows(answer, model, composite="attnlrp", of="logit"):
    for row, span in enumerate(answer.spans):
        place = PROMPT.shape[1] + span.start
        expected = alone(model, place, composite, of)
        assert (answer.relevance[row, :place] - expected.scores[0]).abs().max() < EXACT
        assert (answer.scores[row] - expected.output[0]).abs() < EXACT
        assert not answer.relevance[row, place:].any()


@pytest.mark.parametrize("name", sorted(presets.TRANSFORMERS))
def test_rows_are_those_of_single_targets(name):
    model = llama()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, composite=name, chunk_size=3)
    assert answer.ran == "3 rows at a time"
    assert_rows(answer, model, name)


@pytest.mark.parametrize("make", [gpt2, llama], ids=["gpt2", "llama"])
@pytest.mark.parametrize("composite", [Composite(), presets.attnlrp()], ids=["relevance", "gradient"])
def test_log_probabilities(make, composite):
    model = make()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, composite=composite, of="log_probability")
    assert answer.ran == "4 rows at a time"
    assert_rows(answer, model, composite, "log_probability")
    assert torch.allclose(answer.scores.exp(), answer.predictions.probabilities)


@pytest.mark.parametrize("rule", [Gamma(), AlphaBeta(), ZPlus(), Epsilon(0.1)], ids=str)
def test_rules_that_split_contributions(rule):
    model, composite = llama(), Composite({torch.nn.Linear: rule})
    (answer,) = attribute_generation(model, PROMPT, ANSWER, composite=composite, chunk_size=2)
    assert answer.ran == "2 rows at a time"
    assert_rows(answer, model, composite)


def test_a_state_space_model():
    torch.manual_seed(0)
    config = MambaConfig(num_hidden_layers=2, hidden_size=16, vocab_size=60, state_size=4)
    model = MambaForCausalLM(config).double().eval()
    (answer,) = attribute_generation(model, PROMPT, ANSWER)
    assert_rows(answer, model)


def test_attention_that_writes_its_weights_out():
    """Such a Llama rounds its softmax to float32: lengths change the rounding, so the whole sequence is explained."""
    model = llama(attn_implementation="eager")
    (answer,) = attribute_generation(model, PROMPT, ANSWER)
    assert answer.ran == "4 rows at a time"
    for row, token in enumerate(ANSWER):
        place = PROMPT.shape[1] + row
        found = attribute(model, WHOLE[None, :-1], target=lambda o, at=place - 1, t=token: o.logits[:, at, t])
        assert (answer.relevance[row, :-1] - found.scores[0]).abs().max() < EXACT


def takes_one(slot):
    return slot if bool(slot.isfinite().all()) else None


def doubles_several(slot):
    return slot * 2 if is_batched(slot) else slot


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        pytest.param(takes_one, "row by row: ", id="takes one at a time"),
        pytest.param(
            doubles_several, "row by row: several rows at a time gave other relevance", id="wrong for several"
        ),
    ],
)
def test_an_operation_that_several_cotangents_cannot_pass_is_run_row_by_row(hook, why, monkeypatch):
    model = llama(attn_implementation="eager")
    expected = attribute_generation(model, PROMPT, ANSWER).relevance
    before = SoftmaxTaylor.leave

    def leave(self, call, outputs):
        outputs = before(self, call, outputs)
        outputs[0].register_hook(hook)
        return outputs

    monkeypatch.setattr(SoftmaxTaylor, "leave", leave)
    (answer,) = attribute_generation(model, PROMPT, ANSWER)
    assert answer.ran.startswith(why)
    assert torch.equal(answer.relevance, expected)


@pytest.mark.parametrize(
    "options", [{}, {"chunk_size": 1}, {"chunk_size": 2}, {"memory": 1}, {"traced": True}], ids=str
)
def test_all_ways_give_the_same(options):
    model = gpt2()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, **options)
    assert_rows(answer, model)


def test_a_budget_decides_how_many_rows_run_at_a_time():
    model = gpt2()
    one = 6 * 8 * 64 * 8  # six tensors of eight tokens by 64 features of the widest layer, in float64
    assert attribute_generation(model, PROMPT, ANSWER, memory=2 * one)[0].ran == "2 rows at a time"
    assert attribute_generation(model, PROMPT, ANSWER, memory=one)[0].ran.startswith("row by row")


def encoder_decoders():
    config = BartConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=60, max_position_embeddings=32, decoder_start_token_id=2,
    )  # fmt: skip
    return {"t5": t5(), "bart": _made(BartForConditionalGeneration, config)}


@pytest.mark.parametrize(("name", "traced"), [("t5", False), ("bart", False), ("bart", True)])
def test_an_encoder_and_a_decoder(name, traced):
    model = encoder_decoders()[name]
    (answer,) = attribute_generation(model, PROMPT, ANSWER, traced=traced)
    start = model.config.decoder_start_token_id
    assert answer.sources.sides == ("prompt",) * 5 + ("start",) + ("output",) * 4
    for row, token in enumerate(ANSWER):
        read = torch.tensor([[start, *ANSWER[:row]]])
        found = attribute(model, {"input_ids": PROMPT, "decoder_input_ids": read}, target=token)
        assert (answer.relevance[row, :5] - found.scores["input_ids"][0]).abs().max() < EXACT
        assert (answer.relevance[row, 5 : 6 + row] - found.scores["decoder_input_ids"][0]).abs().max() < EXACT
        assert not answer.relevance[row, 6 + row :].any()
        assert (answer.scores[row] - found.output[0]).abs() < EXACT


def test_padded_batches_and_lists_are_as_each_sample_alone():
    model = gpt2()
    prompts = [ids(1, length, seed=length)[0].tolist() for length in (3, 6)]
    padded = {
        "input_ids": torch.tensor([[0, 0, 0, *prompts[0]], prompts[1]]),
        "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6]),
    }
    answers = [(7, 8), (9, 10, 11)]
    for given in (padded, prompts):
        found = attribute_generation(model, given, answers)
        assert len(found) == 2
        for one, prompt, answer in zip(found, prompts, answers, strict=True):
            expected = attribute_generation(model, prompt, answer)[0]
            assert torch.equal(one.relevance, expected.relevance)
            assert one.sources.ids == (*prompt, *answer)


@pytest.mark.parametrize("composite", [Composite(), presets.attnlrp()], ids=["relevance", "gradient"])
def test_spans_are_sums_of_their_tokens(composite):
    model = gpt2()
    (each,) = attribute_generation(model, PROMPT, ANSWER, composite=composite)
    (spans,) = attribute_generation(model, PROMPT, ANSWER, composite=composite, targets=[(0, 2), slice(1, None), -1])
    for row, (start, stop) in enumerate([(0, 2), (1, 4), (3, 4)]):
        for relevance, score in [
            each.row(start, stop),
            (each.relevance[start:stop].sum(0), each.scores[start:stop].sum()),
        ]:
            assert (spans.relevance[row] - relevance).abs().max() < EXACT
            assert (spans.scores[row] - score).abs() < EXACT
    # ... and what attribute() gives for a sum, which its rules then divide by, with an epsilon
    places, near = torch.arange(4, 8), 1e-6 if composite.formulation == "relevance" else EXACT
    found = attribute(
        model, WHOLE[None, :-1], target=lambda o: o.logits[:, places, WHOLE[5:]].sum(1), composite=composite
    )
    assert (each.row(0, 4)[0][:-1] - found.scores[0]).abs().max() < near


@pytest.mark.parametrize("make", [llama, gpt2, t5], ids=["llama", "gpt2", "t5"])
def test_sums_and_ledger_add_up_to_the_score(make):
    model = make()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, ledger=True)
    assert answer.ran == "row by row: a ledger reads one row at a time"
    sums = answer.sums()
    assert {"prompt", "output", "softmax"} <= sums.keys()
    assert sums["unaccounted"].abs().max() < EXACT
    assert (sum(sums.values()) - answer.scores).abs().max() < EXACT
    (plain,) = attribute_generation(model, PROMPT, ANSWER)
    assert (answer.relevance - plain.relevance).abs().max() < EXACT
    assert (sum(plain.sums().values()) - plain.scores).abs().max() < EXACT
    assert torch.allclose(plain.sums()["biases and the like"], sum(a for a in answer.absorbed.values()).double())


def test_a_contrast_explains_both_answers_each_with_its_own_tokens():
    model = llama()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, contrast=(20, 21))
    expected = attribute_generation(model, PROMPT, (20, 21))[0]
    assert torch.equal(answer.other.relevance, expected.relevance)
    assert answer.other.sources.ids == (*PROMPT[0].tolist(), 20, 21)


def test_a_contrast_adds_up_to_the_difference_of_the_scores():
    model = llama()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, contrast=(20, 21), of="log_probability")
    found, other = answer.contrast(), answer.other
    assert found.score == pytest.approx(float(answer.scores.sum() - other.scores.sum()))
    whole = found.before.sum() + found.own.sum() + found.its.sum() + found.rest
    assert float(whole) == pytest.approx(found.score)
    assert torch.equal(found.before, answer.relevance[:, :5].sum(0) - other.relevance[:, :5].sum(0))
    assert torch.equal(found.its, -other.relevance[:, 5:].sum(0))
    (spans,) = attribute_generation(model, PROMPT, ANSWER, contrast=(20, 21), of="log_probability", targets="all")
    assert (spans.contrast().before - found.before).abs().max() < 1e-6
    (part,) = attribute_generation(model, PROMPT, ANSWER, contrast=(20, 21), targets=[(0, 2)])
    with pytest.raises(ValueError, match="leave tokens out or overlap"):
        part.contrast()
    with pytest.raises(ValueError, match="there is no other answer"):
        other.contrast()


def test_predictions_are_those_of_the_model():
    model = llama()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, top=3)
    with torch.no_grad():
        logits = model(WHOLE[None]).logits[0, 4:-1].double()
    found, own = answer.predictions, torch.tensor(ANSWER)[:, None]
    assert torch.allclose(found.logits.double(), logits.gather(1, own)[:, 0], atol=1e-5)
    assert torch.allclose(found.probabilities, logits.softmax(-1).gather(1, own)[:, 0], atol=1e-5)
    assert torch.equal(found.top_ids, logits.topk(3).indices)
    assert torch.equal(found.ranks, (logits > logits.gather(1, own)).sum(1))


def test_nothing_is_left_behind_and_no_gradient_is_needed():
    model = llama()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.inference_mode():
        attribute_generation(model, PROMPT, ANSWER)
    assert all(p.requires_grad and p.grad is None and torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_composite_that_stops_at_softmax_has_no_log_probabilities():
    with pytest.raises(AttributionError, match=r"stops relevance at the softmax.*explain logits"):
        attribute_generation(llama(), PROMPT, ANSWER, of="log_probability", composite="cp_lrp")


def test_a_model_that_looks_ahead_is_refused():
    with pytest.raises(AttributionError, match="Ahead looks ahead: token 0 of the answer"):
        attribute_generation(Ahead().double(), PROMPT, ANSWER)


def test_values_that_are_not_finite():
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"not finite.*model.layers.1.mlp.down_proj"):
        attribute_generation(model, PROMPT, ANSWER)
