"""Pairs of places: against passes of single features, against a closed form, and their sums."""

import heads
import pytest
import torch
from heads import words
from small_transformers import SMALL, _made
from transformers import BertConfig, BertModel

from lxt_compose import attribute, attribute_similarity, presets

EXACT = 1e-10
FIRST, SECOND = {"input_ids": words(1, 6)}, {"input_ids": words(1, 9)[:, 4:]}


def bert():
    return _made(BertModel, BertConfig(**SMALL, pad_token_id=0))


def mean(output):
    return output.last_hidden_state.mean(1)


def features(model, inputs):
    """The relevance of tokens for each feature of the embedding, one pass each."""
    count = mean(model(**inputs)).shape[1]
    found = [attribute(model, inputs, target=lambda o, m=m: mean(o)[:, m]) for m in range(count)]
    return torch.stack([one.scores[0] for one in found]), torch.cat([one.output for one in found])


@pytest.mark.parametrize("measure", ["cosine", "dot"])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_pairs_are_products_of_passes_for_single_features(measure, chunk):
    model = bert()
    found = attribute_similarity(model, FIRST, SECOND, pairs=True, measure=measure, chunk_size=chunk)
    (a, e), (b, f) = features(model, FIRST), features(model, SECOND)
    scale = 1 / (e.norm() * f.norm()) if measure == "cosine" else torch.tensor(1.0)
    assert (found.pairs.both - scale * torch.einsum("mi,mj->ij", a, b)).abs().max() < EXACT
    assert (found.pairs.first - scale * a.T @ (f - b.sum(1))).abs().max() < EXACT
    assert (found.pairs.second - scale * b.T @ (e - a.sum(1))).abs().max() < EXACT


@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp"])
def test_all_parts_add_up_to_the_similarity(composite):
    found = attribute_similarity(bert(), FIRST, SECOND, pairs=True, composite=composite)
    parts = found.pairs
    total = float(parts.both.sum() + parts.first.sum() + parts.second.sum()) + parts.rest
    assert total == pytest.approx(found.similarity, abs=EXACT)


def test_sums_over_one_side_are_first_order_relevance_with_the_other_held():
    model = bert()
    pairs = attribute_similarity(model, FIRST, SECOND, pairs=True, measure="dot").pairs
    with torch.no_grad():
        held = mean(model(**SECOND))
    alone = attribute(model, FIRST, target=lambda o: (mean(o) * held).sum(1), composite=presets.attnlrp())
    assert (pairs.both.sum(1) + pairs.first - alone.scores[0]).abs().max() < EXACT


class Bag(torch.nn.Module):
    """The mean of the embeddings of words, without anything else."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(60, 7)

    def forward(self, input_ids):
        return self.table(input_ids).mean(1)


def test_a_bag_of_words_has_the_products_of_its_words():
    torch.manual_seed(0)
    model = Bag().double().eval()
    found = attribute_similarity(model, FIRST, SECOND, pairs=True, pooling="embedding")
    a, b = (model.table(x["input_ids"][0]).detach() for x in (FIRST, SECOND))
    expected = a @ b.T / (6 * 5) / (a.mean(0).norm() * b.mean(0).norm())
    assert (found.pairs.both - expected).abs().max() < EXACT
    assert found.pairs.first.abs().max() < EXACT
    assert float(found.pairs.both.sum()) == pytest.approx(found.similarity, abs=EXACT)


def test_patches_of_images():
    model = heads.made(heads.t.CLIPVisionModelWithProjection, heads.t.CLIPVisionConfig(**heads.IMAGE, projection_dim=8))
    images = [{"pixel_values": heads.numbers(2, 3, 28, 28)[k : k + 1]} for k in range(2)]
    found = attribute_similarity(model, *images, pairs=True, pooling="embedding")
    assert found.pairs.both.shape == (4, 4)
    assert found.tokens[0][3] == "image row 1, column 1"
    parts = found.pairs
    total = float(parts.both.sum() + parts.first.sum() + parts.second.sum()) + parts.rest
    assert total == pytest.approx(found.similarity, abs=EXACT)
