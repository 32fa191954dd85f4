"""What is explained where no target is given, and what no target has to do with."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, UncoveredError, attribute


class Places(nn.Module):
    """Answers at each of several places, as detectors, taggers and segmentation do."""

    def __init__(self, *shape):
        super().__init__()
        self.shape, self.linear = shape, nn.Linear(4, torch.Size(shape).numel())

    def forward(self, x):
        return self.linear(x).unflatten(1, self.shape)


@pytest.mark.parametrize("shape", [(5, 3), (3, 4, 4)], ids=["queries", "pixels"])
@pytest.mark.parametrize("target", [None, 1])
def test_an_answer_at_each_place_needs_a_target(shape, target):
    with pytest.raises(ValueError, match=r"which place of it is meant"):
        attribute(Places(*shape).eval(), torch.randn(2, 4), target=target)


SIZES = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
HEADS = {
    "ElectraForPreTraining": transformers.ElectraConfig(vocab_size=60, embedding_size=16, **SIZES),
    "BertForMaskedLM": transformers.BertConfig(vocab_size=60, **SIZES),
    "BertForTokenClassification": transformers.BertConfig(vocab_size=60, **SIZES),
    "XLMWithLMHeadModel": transformers.XLMConfig(vocab_size=60, emb_dim=16, n_layers=1, n_heads=2),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_transformers_that_answer_at_each_token(name):
    model = getattr(transformers, name)(HEADS[name]).eval()
    with pytest.raises(ValueError, match=f"the output of {name} has shape"):
        attribute(model, torch.randint(5, 60, (2, 7)))


class WithLoss(nn.Module):
    """Gives a loss beside its logits if there are labels, as the models of transformers do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        logits = self.linear(x)
        return {"logits": logits} | ({} if labels is None else {"loss": F.cross_entropy(logits, labels)})


def test_a_loss_that_is_not_explained_is_not_in_the_report():
    model, x = WithLoss().eval(), torch.randn(2, 4)
    inputs = {"x": x, "labels": torch.tensor([0, 1])}
    found = attribute(model, inputs, target=1, composite=Composite(strict=True))
    torch.testing.assert_close(found.relevance, attribute(model, {"x": x}, target=1, composite=Composite()).relevance)
    assert found.report.complete
    assert not any(row.target == "cross_entropy" for row in found.report.rows)


def test_a_loss_that_is_explained_is_in_the_report():
    model, inputs = WithLoss().eval(), {"x": torch.randn(1, 4), "labels": torch.tensor([1])}
    found = attribute(model, inputs, target=lambda output: output["loss"])
    assert [row.target for row in found.report.uncovered] == ["cross_entropy"]
    with pytest.raises(UncoveredError, match="cross_entropy in the model"):
        attribute(model, inputs, target=lambda output: output["loss"], composite=Composite(strict=True))


def test_a_masked_language_model_answers_at_its_one_mask_token():
    pytest.importorskip("transformers")
    from small_transformers import ids, masked_bert

    model, given = masked_bert(), ids(2, 5)
    given[0, 3], given[1, 1] = 1, 1
    with pytest.raises(ValueError, match=r"no default; .* \(or set model.config.mask_token_id"):
        attribute(model, {"input_ids": given})
    model.config.mask_token_id = 1
    found = attribute(model, {"input_ids": given})
    want = attribute(model, {"input_ids": given}, target=lambda o: o.logits[[0, 1], [3, 1]].amax(-1))
    torch.testing.assert_close(found.output, want.output)
    assert torch.equal(found.target, model(given).logits[[0, 1], [3, 1]].argmax(-1))
    assert "explained at the one mask token of each sample" in found.report.notes
    given[0, 0] = 1
    with pytest.raises(ValueError, match=r"the samples have 2, 1 mask tokens, not one each"):
        attribute(model, {"input_ids": given}, target=3)
