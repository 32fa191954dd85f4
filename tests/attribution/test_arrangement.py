"""Ids that a model transposes, pads or flattens before it embeds them: relevance is in the order of the ids given."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import Fn, assert_close
from torch import nn
from torch.nn import functional as F

from lxt_compose import AttributionError, Composite, attribute, evaluate
from lxt_compose.attribution.arrangement import arrangement_of

EXACT = Composite(formulation="gradient")


def model_of(before, after, seed=0):
    """Embeds what `before` makes of ids, and classifies the tanh of the embeddings that `after` puts in order."""
    torch.manual_seed(seed)

    def forward(self, ids):
        embedded = after(self.embedding(before(ids)))
        return torch.einsum("ntf,tfc->nc", embedded.tanh(), weight[: embedded.shape[1], :, :3])

    weight = torch.randn(16, 7, 3, dtype=torch.float64)
    return Fn(forward, embedding=nn.Embedding(20, 7)).double().eval()


def plain():
    return model_of(lambda ids: ids, lambda x: x)


WAYS = {
    "transposed": model_of(lambda ids: ids.t(), lambda x: x.transpose(0, 1)),
    "transposed and copied": model_of(lambda ids: ids.t().contiguous(), lambda x: x.transpose(0, 1)),
    "padded behind": model_of(lambda ids: F.pad(ids, (0, 3), value=1), lambda x: x[:, :-3]),
    "padded in front": model_of(lambda ids: F.pad(ids, (2, 0), value=1), lambda x: x[:, 2:]),
    "with a token in front": model_of(lambda ids: torch.cat([ids[:, :1] * 0, ids], 1), lambda x: x[:, 1:]),
    "flat": model_of(lambda ids: ids.reshape(-1), lambda x: x.unflatten(0, (3, -1)) if len(x) % 3 == 0 else x[None]),
    "padded and transposed": model_of(lambda ids: F.pad(ids, (0, 3)).t(), lambda x: x.transpose(0, 1)[:, :-3]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["long", "square", "symmetric"])
def test_relevance_is_that_of_the_ids(way, kind):
    ids = torch.randint(2, 20, (3, 5 if kind == "long" else 3), generator=torch.Generator().manual_seed(1))
    if kind == "symmetric":
        ids = torch.maximum(ids, ids.t())
    found = attribute(WAYS[way], ids, target=[0, 1, 2], composite=EXACT)
    expected = attribute(plain(), ids, target=[0, 1, 2], composite=EXACT)
    assert_close(found.output, expected.output)
    assert_close(found.relevance, expected.relevance)
    assert_close(found.scores, expected.scores)
    if way != "flat":  # which takes three samples at a time
        alone = attribute(WAYS[way], ids, target=[0, 1, 2], composite=EXACT, batch_size=1)
        assert_close(alone.relevance, expected.relevance)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "flat"])
def test_what_is_removed_is_the_token_that_was_meant(way):
    ids = torch.randint(2, 20, (3, 3), generator=torch.Generator().manual_seed(2))
    expected = evaluate.leave_one_out(plain(), ids, target=1)
    assert expected.abs().min() > 0
    assert_close(evaluate.leave_one_out(WAYS[way], ids, target=1), expected)


def test_ids_that_others_stand_between():
    model = model_of(lambda ids: torch.stack([ids, ids * 0], 2).flatten(1), lambda x: x[:, ::2])
    model.get_input_embeddings = lambda: model.embedding
    with pytest.raises(AttributionError, match=r"of shape \[3, 4\] is embedded as \[3, 8\], with other ids between"):
        attribute(model, torch.arange(2, 14).reshape(3, 4), composite=EXACT)


@given(st.permutations(range(3)), st.integers(0, 2), st.integers(0, 2))
def test_there_and_back(order, front, behind):
    ids = torch.arange(24).reshape(2, 3, 4)
    embedded = F.pad(ids.permute(order), (front, behind), value=-1)
    found = arrangement_of(embedded, ids)
    values = torch.stack([embedded, 2 * embedded], -1).double()
    assert_close(found.of_ids(values), torch.stack([ids, 2 * ids], -1).double())
    changed = found.put(values, -found.of_ids(values))
    assert_close(changed, torch.where(embedded[..., None] >= 0, -values, values))


def test_only_some_of_the_ids_are_embedded():
    ids = torch.arange(10).reshape(2, 5)
    found = arrangement_of(ids[:, 1:], ids)
    assert_close(
        found.of_ids(ids[:, 1:, None].double()),
        ids[..., None].double() * torch.tensor([0.0, 1, 1, 1, 1])[:, None].double(),
    )
    assert arrangement_of(ids[:, 1:], ids, exact=True) is None


transformers = pytest.importorskip("transformers")


def test_xlnet_embeds_its_ids_transposed():
    torch.manual_seed(0)
    config = transformers.XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16)
    model = transformers.XLNetForSequenceClassification(config).eval().double()
    ids = torch.randint(5, 50, (3, 3))
    ids = torch.maximum(ids, ids.t())  # nothing in the values tells that they were
    together = attribute(model, {"input_ids": ids}, target=1)
    alone = [attribute(model, {"input_ids": ids[i : i + 1]}, target=1).relevance for i in range(3)]
    assert_close(together.relevance, torch.cat(alone))
    assert together.scores.shape == (3, 3)


def test_longformer_pads_to_its_window():
    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        attention_window=8, vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    model = transformers.LongformerForSequenceClassification(config).eval().double()
    ids = torch.randint(5, 50, (2, 11))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = attribute(model, given, target=1)
    padded = {"input_ids": F.pad(ids, (0, 5), value=1), "attention_mask": F.pad(torch.ones_like(ids), (0, 5))}
    assert found.relevance.shape == (2, 11, 16)
    assert_close(found.relevance, attribute(model, padded, target=1).relevance[:, :11])


def test_choices_are_embedded_one_after_the_other():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertForMultipleChoice(config).eval().double()
    ids = torch.randint(5, 50, (2, 3, 4))
    found = attribute(model, {"input_ids": ids}, target=1)
    assert found.dims == {"input_ids": ("batch", "choice", "token", "feature")}
    assert found.relevance.shape == (2, 3, 4, 16)
    assert found.scores[:, [0, 2]].abs().max() == 0  # each choice has a logit of its own
    assert found.scores[:, 1].abs().min() > 0
