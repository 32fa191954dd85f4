"""Heads of transformers of all kinds: what is explained by default, what else there is, and that it adds up."""

import heads
import pytest
import torch
from heads import numbers, words

from lxt_compose import attribute, targets

QUESTION = torch.tensor([[0, 7, 8, 2, 2, 11, 12, 13, 2]])
TEXTS = torch.tensor([[5, 7, 8, 2], [5, 9, 2, 1], [5, 6, 4, 2]])

# Each with its inputs, a target, and the dimensions of its scores.
HEADS = {
    "token classification": (lambda: heads.bert("TokenClassification"), {"input_ids": words(2, 7)}, targets.token(3)),
    "of XLNet": (lambda: heads.xlnet("TokenClassification"), {"input_ids": words(2, 7)}, targets.token(-1, 1)),
    "of Longformer, padded": (
        lambda: heads.longformer("TokenClassification"), {"input_ids": words(1, 7)}, targets.token(3, 0),
    ),
    "of T5": (lambda: heads.t5("TokenClassification"), {"input_ids": words(2, 7)}, targets.token(1)),
    "a masked token": (lambda: heads.bert("MaskedLM"), {"input_ids": words(2, 7)}, targets.token(2, 17)),
    "question answering": (lambda: heads.bert("QuestionAnswering"), {"input_ids": words(2, 7)}, None),
    "by an encoder with a decoder": (lambda: heads.bart("QuestionAnswering"), {"input_ids": words(2, 7)}, None),
    "by Longformer": (lambda: heads.longformer("QuestionAnswering"), {"input_ids": QUESTION}, targets.answer(5)),
    "multiple choice": (lambda: heads.bert("MultipleChoice"), {"input_ids": words(2, 3, 7)}, 1),
    "a sequence's label, of BART": (
        lambda: heads.bart("SequenceClassification"), {"input_ids": QUESTION[:, [0, 1, 2, 5, 8]]}, None,
    ),
    "a sequence's label, of T5": (
        lambda: heads.t5("SequenceClassification"), {"input_ids": torch.tensor([[9, 7, 11, 23, 1]])}, None,
    ),
    "speech by CTC": (lambda: heads.wav2vec2("CTC"), {"input_values": numbers(1, 400)}, targets.emission(0, 7)),
    "frames of speech": (
        lambda: heads.wav2vec2("AudioFrameClassification"), {"input_values": numbers(2, 400)}, targets.frame(4),
    ),
    "a spectrogram": (heads.spectrogram_transformer, {"input_values": numbers(2, 32, 16)}, None),
    "a transcript": (
        heads.whisper, {"input_features": numbers(1, 8, 40), "decoder_input_ids": torch.tensor([[1, 7]])}, None,
    ),
    "a detected class": (heads.detr, {"pixel_values": numbers(1, 3, 32, 32)}, targets.query(1, 2)),
    "a box": (heads.yolos, {"pixel_values": numbers(2, 3, 28, 28)}, targets.box(0, "width")),
    "detection by words": (
        heads.owlvit, {"input_ids": TEXTS[:2], "pixel_values": numbers(1, 3, 28, 28)}, targets.query(1, 0),
    ),
    "a segment": (heads.segformer, {"pixel_values": numbers(2, 3, 64, 64)}, targets.region(1)),
    "a pixel": (heads.masked_vit, {"pixel_values": numbers(2, 3, 28, 28)}, targets.pixel(3, 4, 1)),
    "texts as classes": (heads.clip, {"input_ids": TEXTS, "pixel_values": numbers(2, 3, 28, 28)}, None),
    "image and text": (heads.siglip, {"input_ids": TEXTS, "pixel_values": numbers(3, 3, 28, 28)}, None),
    "a question about an image": (
        heads.vilt, {"input_ids": words(2, 7), "pixel_values": numbers(2, 3, 28, 28)}, None,
    ),
    "a text about an image": (
        heads.llava, {"input_ids": heads.looked_at(1, 9), "pixel_values": numbers(1, 3, 28, 28)}, None,
    ),
    "a video": (heads.video, {"pixel_values": numbers(1, 4, 3, 28, 28)}, None),
    "by time and place apart": (heads.timesformer, {"pixel_values": numbers(2, 4, 3, 28, 28)}, None),
    "by tubes": (heads.vivit, {"pixel_values": numbers(1, 4, 3, 28, 28)}, 1),
    "a mask": (heads.maskformer, {"pixel_values": numbers(1, 3, 64, 64)}, targets.mask(0)),
    "a mask, by masked attention": (heads.mask2former, {"pixel_values": numbers(1, 3, 64, 64)}, targets.mask(1)),
    "a mask's class, for a task": (
        heads.oneformer, {"pixel_values": numbers(1, 3, 64, 64), "task_inputs": words(1, 8)}, targets.query(0, 2),
    ),
    "depth": (lambda: heads.dpt("DepthEstimation"), {"pixel_values": numbers(2, 3, 28, 28)}, targets.pixel(3, 4)),
    "a pixel of DPT": (
        lambda: heads.dpt("SemanticSegmentation"), {"pixel_values": numbers(1, 3, 28, 28)}, targets.pixel(3, 4, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADS)
def test_sums_and_ledger_add_up_to_what_is_explained(case):
    make, inputs, target = HEADS[case]
    found = attribute(make(), inputs, target=target, ledger=True)
    total = sum(float(relevance.sum()) for relevance in found.relevances.values())
    absorbed = sum(float(amount.sum()) for amount in found.ledger.absorbed.values())
    scale = float(found.output.abs().sum())
    assert total + absorbed == pytest.approx(float(found.output.sum()), abs=1e-10 * max(1, scale))
    assert abs(float(found.ledger.unaccounted)) < 1e-10 * max(1, scale)
    assert found.report.complete
    assert all(bool(relevance.any()) for name, relevance in found.relevances.items() if "type" not in name)


SIZES = {
    "question answering": {"input_ids": (2, 7)},
    "a transcript": {"input_features": (1, 40), "decoder_input_ids": (1, 2)},
    "a spectrogram": {"input_values": (2, 32)},
    "texts as classes": {"input_ids": (3, 4), "pixel_values": (2, 28, 28)},
    "a video": {"pixel_values": (1, 4, 28, 28)},
    "by time and place apart": {"pixel_values": (2, 4, 28, 28)},
    "depth": {"pixel_values": (2, 28, 28)},
    "a text about an image": {"input_ids": (1, 9), "pixel_values": (1, 28, 28)},
}


@pytest.mark.parametrize("case", SIZES)
def test_scores_have_the_places_of_the_inputs(case):
    make, inputs, target = HEADS[case]
    scores = attribute(make(), inputs, target=target).scores
    scores = scores if isinstance(scores, dict) else {next(iter(inputs)): scores}
    assert {name: tuple(found.shape) for name, found in scores.items()} == SIZES[case]


def test_question_answering_is_explained_at_start_and_end():
    model, given = heads.bert("QuestionAnswering"), {"input_ids": words(2, 7)}
    found = attribute(model, given)
    output = model(**given)
    table = output.start_logits[:, :, None] + output.end_logits[:, None]
    best = table.masked_fill(torch.ones(7, 7).tril(-1).bool(), -torch.inf).flatten(1)
    places = [divmod(place, 7) for place in best.argmax(1).tolist()]
    torch.testing.assert_close(found.output, best.amax(1).detach())
    spans = ", ".join(f"{first} to {last}" for first, last in places)
    assert f"explained: start and end of the best span, tokens {spans}" in found.report.notes
    parts = [
        attribute(model, given, target=lambda o, side=side, at=at: getattr(o, f"{side}_logits")[[0, 1], at])
        for side, at in zip(("start", "end"), zip(*places, strict=True), strict=True)
    ]
    torch.testing.assert_close(found.relevance, parts[0].relevance + parts[1].relevance)


def test_images_and_texts():
    model, images = heads.clip(), numbers(3, 3, 28, 28)
    pairs = attribute(model, {"input_ids": TEXTS, "pixel_values": images})
    assert "explained: the similarity of each image with the text of its own number" in pairs.report.notes
    torch.testing.assert_close(pairs.output, model(TEXTS, images).logits_per_image.diagonal().detach())
    one = attribute(model, {"input_ids": TEXTS[1:2], "pixel_values": images[1:2]})
    torch.testing.assert_close(pairs.relevance["pixel_values"][1:2], one.relevance["pixel_values"])
    torch.testing.assert_close(pairs.relevance["input_ids"][1:2], one.relevance["input_ids"])
    two = attribute(model, {"input_ids": TEXTS, "pixel_values": images[:2]}, target=1)
    assert two.dims["input_ids"] == ("choice", "token", "feature")
    wanted = attribute(model, {"input_ids": TEXTS, "pixel_values": images[:2]}, target=targets.similarity(text=1))
    torch.testing.assert_close(two.relevance["pixel_values"], wanted.relevance["pixel_values"])
    torch.testing.assert_close(two.output[1], model(TEXTS, images).logits_per_image[1, 1].detach())
    said = {"input_ids": TEXTS, "pixel_values": images, "attention_mask": torch.ones_like(TEXTS)}
    classes = attribute(model, said, dims={"input_ids": "choice token"}, batch_size=1)
    torch.testing.assert_close(classes.target, model(TEXTS, images).logits_per_image.argmax(1))


MESSAGES = {
    "token classification": r"token 3 of 7, .*token\(3, label\) .* \(0: LABEL_0, .*each\(targets.token, range\(7\)",
    "a masked token": r"targets.token\(3\) for what it answers at token 3 of 7",
    "speech by CTC": r"frame 3 of 39, .*; targets.emission\(0, blank\) for the first symbol",
    "frames of speech": r"frame 3 of 39",
    "a detected class": r"query 3 of 5, .*; targets.box\(3, 'center_x'\) for a side of its box",
    "a segment": r"pixel\(row, column, label\) for one of 16 x 16 pixels \(labels 0: LABEL_0, .*region\(label\)",
    "depth": r"pass target= .* targets.pixel\(row, column\) for one of 32 x 32 pixels$",
}


@pytest.mark.parametrize("case", MESSAGES)
def test_what_there_is_to_choose_from(case):
    make, inputs, _ = HEADS[case]
    for target in (None, 1):
        with pytest.raises(ValueError, match=MESSAGES[case]):
            attribute(make(), inputs, target=target)


def test_classes_and_masks_of_queries():
    message = r"no logits.*targets.mask\(query\) for the mask of one of 3 queries, targets.query\(query, label\)"
    with pytest.raises(TypeError, match=message):
        attribute(heads.maskformer(), numbers(1, 3, 64, 64))


def test_a_video_has_frames_by_name():
    for make in (heads.video, heads.timesformer, heads.vivit):
        found = attribute(make(), {"pixel_values": numbers(1, 4, 3, 28, 28)})
        assert found.dims["pixel_values"] == ("batch", "frame", "channel", "height", "width")


def test_embeddings_are_no_answers():
    model = heads.made(heads.t.DPRQuestionEncoder, heads.t.DPRConfig(**heads.TEXT))
    with pytest.raises(TypeError, match=r"\(pooler_output\) has no logits, .* attribute_similarity\(model, first, sec"):
        attribute(model, {"input_ids": words(1, 7)})


def test_a_target_for_each_token():
    model, given = heads.bert("TokenClassification"), {"input_ids": words(2, 7)}
    found = attribute(model, given, target=targets.each(targets.token, range(7)))
    assert found.target_names[:2] == ("token 0", "token 1")
    torch.testing.assert_close(found.output.reshape(2, 7), model(**given).logits.amax(-1).detach())
    alone = attribute(model, given, target=targets.token(4))
    torch.testing.assert_close(found.relevance.unflatten(0, (2, 7))[:, 4], alone.relevance)
