"""Rows in parts, and where their backward passes begin, change what is computed and not what is found."""

import pytest
import torch
from small_transformers import Ahead, _made, gpt2, ids, llama, t5
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MambaConfig, MambaForCausalLM

from lxt_compose import AttributionError, Composite, attribute, attribute_generation, presets
from lxt_compose.generation import parts
from lxt_compose.generation.memory import weights_of
from lxt_compose.generation.prompts import read_prompts
from lxt_compose.generation.reading import inputs_of
from lxt_compose.generation.starts import Watch

PROMPT, ANSWER = ids(1, 5), tuple(ids(1, 12, seed=4)[0].tolist())
WHOLE = torch.cat([PROMPT[0], torch.tensor(ANSWER)])
EXACT = 1e-10


def neox():
    config = GPTNeoXConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=60
    )
    return _made(GPTNeoXForCausalLM, config)


def mamba():
    config = MambaConfig(num_hidden_layers=2, hidden_size=16, vocab_size=60, state_size=4)
    return _made(MambaForCausalLM, config)


@pytest.fixture
def free_passes(monkeypatch):
    """Parts are worth it for the smallest model."""
    monkeypatch.setattr(parts, "_PASS", {"cpu": 0.0})


@pytest.fixture
def begun(monkeypatch):
    """Where backward passes of several rows began."""
    found, before = [], Watch.in_last_block

    def in_last_block(self, *given):
        for start in before(self, *given):
            found.append(start)
            yield start

    def at_head(self, *given):
        found.append("before the head")
        yield from at_the_head(self, *given)

    at_the_head = Watch.at_head
    monkeypatch.setattr(Watch, "in_last_block", in_last_block)
    monkeypatch.setattr(Watch, "at_head", at_head)
    return found


def assert_rows(answer, model, composite="attnlrp"):
    for row, token in enumerate(ANSWER):
        place = PROMPT.shape[1] + row
        expected = attribute(model, WHOLE[None, :place], target=token, composite=composite)
        assert (answer.relevance[row, :place] - expected.scores[0]).abs().max() < EXACT
        assert (answer.scores[row] - expected.output[0]).abs() < EXACT
        assert not answer.relevance[row, place:].any()


@pytest.mark.parametrize("make", [llama, gpt2, neox, mamba], ids=lambda make: make.__name__)
@pytest.mark.parametrize("composite", [Composite(), presets.attnlrp()], ids=["relevance", "gradient"])
def test_rows_begin_above_the_last_attention(make, composite, begun):
    """... or scan: below it is all that mixes tokens, above it are layers that are run for all rows at once."""
    model = make()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, composite=composite, chunk_size=5)
    assert_rows(answer, model, composite)
    (start,) = begun
    assert [x.shape[:2] for x in start.tensors] == [(1, 16)] * 2
    assert answer.ran == "5 rows at a time"


def test_where_the_last_block_mixes_tokens_twice_rows_begin_before_the_head(begun):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.mlp = torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)

        def forward(self, x):
            x = x + self.attention(x.cumsum(1))
            return x.cumsum(1) + self.mlp(x).relu().cumsum(1)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = torch.nn.Embedding(60, 8), torch.nn.Linear(8, 60)
            self.layers = torch.nn.ModuleList([Twice(), Twice()])

        def get_output_embeddings(self):
            return self.head

        def forward(self, input_ids):
            x = self.table(input_ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    torch.manual_seed(0)
    model = Model().double()
    (answer,) = attribute_generation(model, PROMPT, ANSWER)
    assert_rows(answer, model)
    assert begun == ["before the head"]
    assert answer.ran == "12 rows at a time"


@pytest.mark.parametrize(
    ("make", "options"),
    [
        *((make, options) for make in (llama, gpt2, mamba) for options in ({}, {"of": "log_probability"})),
        *((make, options) for make in (llama, gpt2) for options in ({"layers": True}, {"chunk_size": 1})),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_parts_give_the_same_rows(make, options, free_passes, monkeypatch):
    model = make()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, **options)
    assert answer.ran.endswith("in 2 parts that end with their last tokens")
    if "of" not in options:
        assert_rows(answer, model)
    monkeypatch.undo()
    (expected,) = attribute_generation(model, PROMPT, ANSWER, **options)
    assert "parts" not in expected.ran
    assert (answer.relevance - expected.relevance).abs().max() < EXACT
    assert torch.equal(answer.predictions.logits, expected.predictions.logits)
    if "layers" in options:
        for name in ("tokens", "heads"):
            a, b = getattr(answer.layers, name), getattr(expected.layers, name)
            assert a.shape == b.shape
            assert (a - b).abs().max() < EXACT


def test_parts_of_spans_in_any_order(free_passes):
    spans = [(9, 12), (0, 2), 7, (3, 5), 0, (1, 8), 11, 2]
    model = gpt2()
    (answer,) = attribute_generation(model, PROMPT, ANSWER, targets=spans)
    assert "parts" in answer.ran
    (each,) = attribute_generation(model, PROMPT, ANSWER)
    for row, span in enumerate(answer.spans):
        relevance, score = each.row(span.start, span.stop)
        assert (answer.relevance[row] - relevance).abs().max() < EXACT
        assert (answer.scores[row] - score).abs() < EXACT


def test_parts_of_a_decoder_and_its_encoder(free_passes):
    model = t5()
    (answer,) = attribute_generation(model, PROMPT, ANSWER)
    assert "parts" in answer.ran
    for row, token in enumerate(ANSWER):
        read = torch.tensor([[0, *ANSWER[:row]]])
        found = attribute(model, {"input_ids": PROMPT, "decoder_input_ids": read}, target=token)
        assert (answer.relevance[row, :5] - found.scores["input_ids"][0]).abs().max() < EXACT
        assert (answer.relevance[row, 5 : 6 + row] - found.scores["decoder_input_ids"][0]).abs().max() < EXACT


@pytest.mark.parametrize("ahead", [slice(None), slice(9, 10)], ids=["everywhere", "at the end of a part"])
def test_a_model_that_looks_ahead_is_refused_in_parts_too(ahead, free_passes):
    token = 0 if ahead.start is None else 5  # the first part has six tokens, the first of them is made at place 4
    with pytest.raises(AttributionError, match=f"Ahead looks ahead: token {token} of the answer"):
        attribute_generation(Ahead(ahead).double(), PROMPT, ANSWER)


def test_how_many_parts_is_what_is_least_work(monkeypatch):
    model = llama()
    (prompt,) = read_prompts(model, PROMPT, None)
    given, _ = inputs_of(model, prompt, ANSWER)
    stops = list(range(1, 13))
    weights = sum(p.numel() for p in weights_of(model))

    def work(count, alone):
        split = [stops[12 * n // count : 12 * (n + 1) // count] for n in range(count)]
        return sum((len(part) + 2) * (4 + part[-1]) for part in split) * weights + count * alone

    for alone in (0.0, 8.0 * weights, 40.0 * weights):
        monkeypatch.setattr(parts, "_PASS", {"cpu": alone})
        found = parts.parts_of(model, given, stops)
        assert [row for part in found for row in part] == list(range(12))
        assert len(found) == min(range(1, 7), key=lambda count: work(count, alone))
    assert len(found) == 1
