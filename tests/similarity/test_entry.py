"""Similarity of two inputs: both explained together, adding up; poolings; errors."""

import json
import re

import pytest
import torch
from heads import words
from small_transformers import SMALL, _made
from torch import nn
from torch.nn import functional as F
from trained_tokenizers import wordpiece
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lxt_compose import attribute, attribute_similarity
from lxt_compose.similarity import POOLINGS

EXACT = 1e-10
FIRST, SECOND = {"input_ids": words(1, 6)}, {"input_ids": words(1, 9)[:, 4:]}


def bert(**sizes):
    return _made(BertModel, BertConfig(**{**SMALL, **sizes}, pad_token_id=0))


class Both(nn.Module):
    """The same by hand."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, first, second):
        a, b = (self.model(input_ids=ids).last_hidden_state.mean(1) for ids in (first, second))
        return F.cosine_similarity(a, b)


def test_both_are_explained_together():
    model = bert()
    found = attribute_similarity(model, FIRST, SECOND)
    given = {"first": FIRST["input_ids"], "second": SECOND["input_ids"]}
    expected = attribute(Both(model).eval(), given, dims="batch token").relevance
    for side, scores in zip(("first", "second"), found.scores, strict=True):
        assert (scores - expected[side].sum(-1)[0]).abs().max() < EXACT
    assert found.similarity == pytest.approx(float(Both(model)(**given).detach()))
    assert found.report.complete


def test_sums_and_ledger_add_up():
    found = attribute_similarity(bert(), FIRST, SECOND, ledger=True)
    assert abs(float(found.ledger.unaccounted)) < EXACT
    absorbed = sum(float(amount.sum()) for amount in found.ledger.absorbed.values())
    assert found.rest == pytest.approx(absorbed, abs=EXACT)
    assert found.similarity == pytest.approx(float(found.scores[0].sum() + found.scores[1].sum()) + found.rest)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_padding_is_not_pooled(pooling):
    model = bert()
    padded = {"input_ids": F.pad(FIRST["input_ids"], (0, 2)), "attention_mask": torch.tensor([[1] * 6 + [0] * 2])}
    alone = attribute_similarity(model, FIRST, SECOND, pooling=pooling)
    found = attribute_similarity(model, padded, SECOND, pooling=pooling)
    assert found.similarity == pytest.approx(alone.similarity)
    assert (found.scores[0][:6] - alone.scores[0]).abs().max() < EXACT
    assert found.scores[0][6:].abs().max() < EXACT


def test_poolings():
    model = bert()
    states = model(**FIRST).last_hidden_state
    output = model(**FIRST)
    wanted = {"mean": states.mean(1), "first": states[:, 0], "last": states[:, -1], "embedding": output.pooler_output}
    for name, expected in wanted.items():
        torch.testing.assert_close(POOLINGS[name](output, FIRST), expected)
    own = attribute_similarity(model, FIRST, SECOND, pooling=lambda output, inputs: output.last_hidden_state[:, 2])
    third = [model(**one).last_hidden_state[:, 2].detach() for one in (FIRST, SECOND)]
    assert own.similarity == pytest.approx(float(F.cosine_similarity(*third)))


def test_texts_with_a_tokenizer():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece(), pad_token="[PAD]", unk_token="[UNK]")
    model = bert(vocab_size=len(tokenizer))
    found = attribute_similarity(model, "a wonderful film", "the film", tokenizer=tokenizer, pairs=True)
    assert found.tokens[1] == tuple(tokenizer.convert_ids_to_tokens(tokenizer("the film")["input_ids"]))
    assert "film" in found.heatmap().html()
    first, second, most = found.strongest(1)[0]
    assert abs(most) == pytest.approx(float(found.pairs.both.abs().max()))
    assert (first in found.tokens[0], second in found.tokens[1]) == (True, True)


def test_tables_and_figures():
    pandas, matplotlib = pytest.importorskip("pandas"), pytest.importorskip("matplotlib")
    assert (pandas, matplotlib) != (None, None)
    found = attribute_similarity(bert(), FIRST, SECOND, pairs=True)
    table = found.to_dataframe()
    assert len(table) == 30
    assert table["relevance"].sum() == pytest.approx(float(found.pairs.both.sum()))
    assert found.plot().images[0].get_array().shape == (6, 5)
    plain = attribute_similarity(bert(), FIRST, SECOND)
    assert list(plain.to_dataframe()["input"].value_counts()) == [6, 5]
    with pytest.raises(ValueError, match=r"pairs were not asked for: attribute_similarity\(\.\.\., pairs=True\)"):
        plain.strongest()


def test_arrays_with_named_dimensions():
    pytest.importorskip("xarray")
    found = attribute_similarity(bert(), FIRST, SECOND, pairs=True)
    data = found.to_xarray()
    assert dict(data.sizes) == {"first": 6, "second": 5}
    assert data["first_token"].values.tolist() == list(found.tokens[0])
    total = float(data["first_score"].sum() + data["second_score"].sum()) + data.attrs["rest"]
    assert total == pytest.approx(data.attrs["similarity"])
    assert float(data["pair"].sel(first=2, second=3)) == float(found.pairs.both[2, 3])
    assert "pair" not in attribute_similarity(bert(), FIRST, SECOND).to_xarray()


def test_json_says_all():
    found = attribute_similarity(bert(), FIRST, SECOND, pairs=True)
    data = json.loads(found.to_json())
    assert data["first"] == {"tokens": list(found.tokens[0]), "scores": found.scores[0].tolist()}
    assert data["pairs"] == found.pairs.both.tolist()
    assert data["strongest"][0] == dict(zip(("first", "second", "relevance"), found.strongest(1)[0], strict=True))
    assert (data["rest"], data["complete"]) == (found.rest, True)
    assert "pairs" not in json.loads(attribute_similarity(bert(), FIRST, SECOND).to_json(indent=1))


def test_a_page(tmp_path):
    found = attribute_similarity(bert(), FIRST, SECOND, pairs=True, ledger=True)
    page = found.page(tmp_path / "page.html", title="a < b").read_text("utf-8")
    assert "<h1>a &lt; b</h1>" in page
    assert "<script" not in page
    for part in ("Where the similarity is", "Which goes with which", "Where the relevance went", "Which rules were at"):
        assert f"<h2>{part}" in page
    cells = re.findall(r'data-tip="([^"]*)"', page[page.index("Which goes with which") :])
    assert len(cells) >= 30
    a, b, value = found.strongest(1)[0]
    assert any(cell.startswith(f"{a}  {b}") and f"{value:+.4g}"[:5] in cell for cell in cells)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"first": "a text"}, TypeError, "first is a text, which needs a tokenizer"),
        ({"second": 3}, TypeError, "second must be a text or a mapping of keyword arguments, got int"),
        ({"second": {"input_ids": words(2, 4)}}, ValueError, "second has 2 samples; .* one pair at a time"),
        ({"pooling": "max"}, ValueError, "pooling must be one of 'mean', 'first', 'last', 'embedding'.*got 'max'"),
        ({"measure": "euclid"}, ValueError, "measure must be one of 'cosine', 'dot', got 'euclid'"),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        attribute_similarity(bert(), **{"first": FIRST, "second": SECOND, **options})
