"""Pipelines of transformers in place of a model: the numbers of their model and the tensors that it is given."""

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("PIL")

from PIL import Image  # noqa: E402
from trained_tokenizers import byte_bpe, wordpiece  # noqa: E402

from lxt_compose import attribute  # noqa: E402

TEXTS = ["the film was boring", "a wonderful film, warm and funny and never boring"]


def classifier():
    torch.manual_seed(0)
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=wordpiece(), **special)
    config = transformers.BertConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).eval()
    return transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")


def test_a_text_is_what_the_tokenizer_makes_of_it():
    pipe = classifier()
    encoded = pipe.tokenizer(TEXTS[0], return_tensors="pt")
    expected = attribute(pipe.model, {name: encoded[name] for name in ("input_ids", "attention_mask")}, target=1)
    found = attribute(pipe, TEXTS[0], target=1)
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=0, atol=0)
    assert found.tokens(pipe.tokenizer)[:3] == ["[CLS]", "the", "film"]
    assert found.report.complete


def test_a_text_without_tokens():
    pipe = classifier()
    pipe.tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="the text has no tokens"):
        attribute(pipe, "")


def test_several_texts_are_padded():
    pipe = classifier()
    together = attribute(pipe, TEXTS, target=[1, 2])
    for row, (text, target) in enumerate(zip(TEXTS, (1, 2), strict=True)):
        alone = attribute(pipe, text, target=target)
        length = alone.scores.shape[1]
        torch.testing.assert_close(together.scores[row, :length], alone.scores[0], rtol=1e-4, atol=1e-6)
        assert not together.scores[row, length:].any()


def test_what_a_language_model_would_say_next():
    torch.manual_seed(0)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_bpe(), eos_token="<|endoftext|>")
    config = transformers.GPT2Config(vocab_size=330, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    pipe = transformers.pipeline(
        "text-generation", model=transformers.GPT2LMHeadModel(config).eval(), tokenizer=tokenizer, device="cpu"
    )
    found = attribute(pipe, TEXTS[0])
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    assert found.target.tolist() == [pipe.model(ids).logits[0, -1].argmax().item()]
    assert found.scores.shape == ids.shape


def test_images_are_those_of_the_processor():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    model = transformers.ViTForImageClassification(config).eval()
    pipe = transformers.pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    images = [Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)) for seed in (0, 1)]
    found = attribute(pipe, images, target=0)
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found.relevance, attribute(model, pixels, target=0).relevance, rtol=1e-4, atol=1e-6)


class Windows:
    """A pipeline that makes several inputs of one, as those for long texts do."""

    def __init__(self):
        self.model = classifier().model

    def preprocess(self, text):
        ids = torch.tensor([[2, 5, 6, 3]])
        yield from ({"input_ids": ids, "is_last": last} for last in (False, True))


def test_several_inputs_of_one_are_refused():
    with pytest.raises(ValueError, match=r"Windows makes 2 inputs of one .*: choose one, attribute\(pipeline.model"):
        attribute(Windows(), "a text")
    pipe = Windows()
    one = next(iter(pipe.preprocess("a text")))
    assert attribute(pipe.model, {"input_ids": one["input_ids"]}, target=0).report.complete


def test_no_inputs_are_refused():
    with pytest.raises(ValueError, match="is given no inputs: a list without samples"):
        attribute(classifier(), [])
