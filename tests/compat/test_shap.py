"""Relevance as SHAP's plots take it."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from lxt_compose import attribute, compat


class Explanation:
    """What SHAP's own class keeps of its arguments."""

    def __init__(self, values, base_values=None, data=None, feature_names=None):
        self.values, self.base_values, self.data, self.feature_names = values, base_values, data, feature_names


@pytest.fixture
def shap(monkeypatch):
    """SHAP, or a stand-in for its one class that is used."""
    try:
        import shap
    except ImportError:
        import types

        shap = types.ModuleType("shap")
        shap.Explanation = Explanation
        monkeypatch.setitem(sys.modules, "shap", shap)
    return shap


class Words:
    def convert_ids_to_tokens(self, ids):
        return [f"word{number}" for number in ids]


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids).mean(1))


def test_values_and_base_add_up_to_the_output(shap):
    torch.manual_seed(0)
    result = attribute(nn.Linear(4, 3), torch.randn(2, 4), target=1)
    found = compat.shap_explanation(result, names=["a", "b", "c", "d"])
    assert isinstance(found, shap.Explanation)
    np.testing.assert_allclose(found.values.sum(1) + found.base_values, result.output.numpy(), rtol=1e-6)
    assert list(found.feature_names) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(found.data, result.inputs["input"].numpy())


def test_tokens_are_named(shap):
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    result = attribute(Reader(), ids, target=1)
    found = compat.shap_explanation(result, names=Words())
    assert found.data.tolist() == [["word1", "word2", "word3"], ["word4", "word5", "word0"]]
    assert found.values.shape == (2, 3)


def test_a_tokenizer_needs_ids(shap):
    result = attribute(nn.Linear(4, 3), torch.randn(2, 4), target=1)
    with pytest.raises(ValueError, match="a tokenizer names ids, and these inputs are none"):
        compat.shap_explanation(result, names=Words())


def test_several_inputs_are_refused(shap):
    model = nn.Bilinear(4, 5, 3)
    result = attribute(model, (torch.randn(2, 4), torch.randn(2, 5)), target=1)
    with pytest.raises(ValueError, match="an explanation of SHAP has one input, this one has input1, input2"):
        compat.shap_explanation(result)


def test_without_shap_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "shap", None)
    with pytest.raises(ImportError, match="needs SHAP: pip install shap"):
        compat.shap_explanation(attribute(nn.Linear(4, 3), torch.randn(2, 4), target=1))
