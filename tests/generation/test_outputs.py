"""Each answer of a head that answers at many places: as attribute() explains it, and adding up to its score."""

import json
from types import SimpleNamespace

import heads
import pytest
import torch
from heads import numbers, words

from lxt_compose import attribute, attribute_outputs, targets
from lxt_compose.generation.heads import _around, answers_of

EXACT = 1e-10


class Letters:
    """Names of symbols, as a tokenizer of speech has them."""

    all_special_ids = ()
    word_delimiter_token = "|"

    def convert_ids_to_tokens(self, ids):
        return ["|" if token == 4 else "abcdefghijklmnopqrstuvwxyz+-_&"[token] for token in ids]


def speech():
    model = heads.wav2vec2("CTC")
    model.config.pad_token_id = 7
    return model, {"input_values": numbers(1, 400)}


CASES = {
    "detection": (lambda: (heads.detr(), {"pixel_values": numbers(1, 3, 32, 32)}), {"threshold": 0.2}),
    "by a sigmoid": (
        lambda: (heads.owlvit(), {"input_ids": torch.tensor([[5, 7, 8, 2], [5, 9, 4, 2]]),
                                  "pixel_values": numbers(1, 3, 28, 28)}), {"threshold": 0.01},
    ),
    "token classification": (lambda: (heads.bert("TokenClassification"), {"input_ids": words(1, 7)}), {}),
    "speech": (speech, {"processor": Letters()}),
    "frames": (lambda: (heads.wav2vec2("AudioFrameClassification"), {"input_values": numbers(1, 400)}), {}),
    "segments": (lambda: (heads.segformer(), {"pixel_values": numbers(1, 3, 64, 64)}), {}),
    "masks": (lambda: (heads.maskformer(), {"pixel_values": numbers(1, 3, 64, 64)}), {"threshold": 0.2}),
    "a question": (lambda: (heads.bert("QuestionAnswering"), {"input_ids": words(1, 7)}), {}),
}  # fmt: skip


def expected(model, inputs, kind, options):
    """A target for each row."""
    with torch.no_grad():
        output = model(**inputs)
    if kind in ("detection", "by a sigmoid", "masks"):
        logits = output.class_queries_logits[0] if kind == "masks" else output.logits[0]
        shares = logits.sigmoid() if kind == "by a sigmoid" else logits.softmax(-1)[:, :-1]
        best, classes = shares.max(-1)
        order = [int(q) for q in best.argsort(descending=True) if best[q] > options["threshold"]]
        return [targets.query(q, int(classes[q])) for q in order]
    if kind == "token classification":
        return [targets.token(place) for place in range(7)]
    if kind in ("speech", "frames"):
        blank = 7 if kind == "speech" else -1
        return [targets.emission(k, blank) for k in range(len(targets.emissions(output.logits[0], blank)))]
    if kind == "segments":
        labels, counts = output.logits[0].argmax(0).unique(return_counts=True)
        return [targets.region(int(labels[k])) for k in counts.argsort(descending=True)]
    best = targets.answers.spans_of(output.start_logits, output.end_logits)
    return [lambda o, s=int(best[0]): o.start_logits[:, s], lambda o, e=int(best[1]): o.end_logits[:, e]]


@pytest.mark.parametrize("kind", CASES)
def test_rows_are_those_of_single_targets(kind):
    make, options = CASES[kind]
    model, inputs = make()
    (answer,) = attribute_outputs(model, inputs, **options)
    wanted = expected(model, inputs, kind, options)
    assert len(answer.spans) == len(wanted) > 0
    for row, target in enumerate(wanted):
        found = attribute(model, inputs, target=target)
        assert (answer.scores[row] - found.output[0]).abs() < EXACT
        total = sum(float(found.relevances[name].sum()) for name in inputs)
        assert float(answer.relevance[row].sum()) == pytest.approx(total, abs=EXACT)
        if kind in ("token classification", "a question"):
            assert (answer.relevance[row, :7] - found.scores[0]).abs().max() < EXACT
        if kind == "speech":
            steps = torch.stack([part.sum() for part in found.scores[0].split(2)])
            assert (answer.maps()["sound"][row, 0] - steps).abs().max() < EXACT
    assert not answer.relevance[:, -len(wanted) :].any()


@pytest.mark.parametrize("kind", CASES)
def test_sums_and_ledger_add_up_to_the_score(kind):
    make, options = CASES[kind]
    (answer,) = attribute_outputs(*make(), **options, ledger=True)
    sums = answer.sums()
    assert (sum(sums.values()) - answer.scores).abs().max() < EXACT
    assert sums["unaccounted"].abs().max() < EXACT
    assert answer.report.complete


def test_boxes_and_probabilities_of_a_detector():
    model, inputs = CASES["detection"][0]()
    (answer,) = attribute_outputs(model, inputs, threshold=0.2)
    with torch.no_grad():
        output = model(**inputs)
    shares, classes = output.logits[0].softmax(-1)[:, :-1].max(-1)
    first = int(shares.argmax())
    x, y, width, height = output.pred_boxes[0, first].tolist()
    assert answer.boxes[0].tolist() == pytest.approx([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    assert float(answer.predictions.probabilities[0]) == pytest.approx(float(shares[first]), abs=1e-5)
    assert answer.spans[0].name == f"LABEL_{int(classes[first])}"


def test_boxes_are_around_masks():
    model, inputs = CASES["masks"][0]()
    (answer,) = attribute_outputs(model, inputs, threshold=0.2)
    with torch.no_grad():
        output = model(**inputs)
    best = output.class_queries_logits[0].softmax(-1)[:, :-1].amax(-1)
    masks = output.masks_queries_logits[0, best.argsort(descending=True)] > 0
    assert len(answer.boxes) == len(masks) == 3
    for box, mask in zip(answer.boxes, masks, strict=True):
        rows, columns = (places.tolist() for places in mask.nonzero(as_tuple=True))
        height, width = mask.shape
        expected = [min(columns) / width, min(rows) / height, (max(columns) + 1) / width, (max(rows) + 1) / height]
        assert box.tolist() == pytest.approx(expected)
    empty = _around(torch.zeros(1, 4, 5, dtype=torch.bool))
    assert empty.tolist() == [[0, 0, 1, 1]]


def test_tables_arrays_and_figures_of_a_detector():
    model, inputs = CASES["detection"][0]()
    found = attribute_outputs(model, inputs, threshold=0.2)
    (answer,) = found
    (data,) = json.loads(found.to_json())
    assert data["boxes"] == answer.boxes.tolist()
    assert data["target"] == [span.name for span in answer.spans]
    assert torch.tensor(data["source_attributions"]).shape == (len(answer.spans), sum(map(len, answer.sources.grids)))
    assert found.plot().images[0].get_array().shape[0] == len(answer.spans)
    table = found.to_dataframe()
    assert table["relevance"].sum() == pytest.approx(float(answer.relevance.sum()))
    assert set(table["target"]) == {span.name for span in answer.spans}
    pytest.importorskip("xarray")
    arrays = found.to_xarray()
    assert dict(arrays.sizes)["target"] == len(answer.spans)
    assert float(arrays["sums"].sum()) == pytest.approx(float(answer.scores.sum()))


def test_letters_make_a_text():
    model, inputs = speech()
    (answer,) = attribute_outputs(model, inputs, processor=Letters())
    found = targets.emissions(model(**inputs).logits[0], 7)
    text = "".join(Letters().convert_ids_to_tokens([one.symbol])[0] for one in found).replace("|", " ")
    assert answer.text == text.strip()
    reader = SimpleNamespace(sampling_rate=16000)
    (timed,) = attribute_outputs(model, inputs, processor=SimpleNamespace(feature_extractor=reader))
    assert timed.sources.grids[0].seconds == pytest.approx(2 / 16000)


def test_words_of_a_masked_language_model_have_their_names():
    class Numbered:
        all_special_ids = ()

        def convert_ids_to_tokens(self, ids):
            return [f"w{number}" for number in ids]

    model, inputs = heads.bert("MaskedLM"), {"input_ids": words(1, 7)}
    (answer,) = attribute_outputs(model, inputs, processor=Numbered())
    best = model(**inputs).logits[0].argmax(-1).tolist()
    assert [span.name for span in answer.spans] == [f"w{number}" for number in best]
    assert answer.predictions.top_tokens[0][0] == f"w{best[0]}"


def test_the_answers_of_a_question():
    (answer,) = attribute_outputs(*CASES["a question"][0]())
    assert [span.name.rpartition(" ")[0] for span in answer.spans] == ["start at token", "end at token"]


def test_probabilities_are_those_of_the_surest_frame():
    model, inputs = speech()
    with torch.no_grad():
        output = model(**inputs)
    found = answers_of(model, output, SimpleNamespace(ids={}), None, 0.5)
    one = targets.emissions(output.logits[0], 7)[0]
    (answer,) = attribute_outputs(model, inputs)
    share = output.logits[0, one.first : one.last + 1].softmax(-1)[:, one.symbol].max()
    assert float(answer.predictions.probabilities[0]) == pytest.approx(float(share), abs=1e-5)
    assert found.wanted.weights[0].sum() == one.last - one.first + 1


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda: attribute_outputs(heads.bert("MultipleChoice"), {"input_ids": words(1, 3, 7)}), TypeError,
         r"has shape \[1, 3\]: it does not answer at many places; explain it with attribute\(\)"),
        (lambda: attribute_outputs(heads.dpt("DepthEstimation"), {"pixel_values": numbers(1, 3, 28, 28)}), TypeError,
         r"DPTForDepthEstimation has shape \[1, 32, 32\]: a number for each pixel, .*targets.pixel\(\)"),
        (lambda: attribute_outputs(heads.bert("TokenClassification"), {"input_ids": words(2, 7)}), ValueError,
         "explains one sample, got 2; take them one by one"),
        (lambda: attribute_outputs(heads.detr(), {"pixel_values": numbers(1, 3, 32, 32)}, threshold=0.99), ValueError,
         r"nothing is detected: the most likely thing, LABEL_\d, has 0.\d+, and threshold= is 0.99"),
    ],
)  # fmt: skip
def test_errors(ask, error, message):
    with pytest.raises(error, match=message):
        ask()
