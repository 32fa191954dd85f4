"""Images and sounds as sources: the same relevance as attribute() finds, place by place; pictures, sizes, names."""

from types import SimpleNamespace

import heads
import pytest
import torch
from heads import numbers
from torch.nn import functional as F

from lxt_compose import attribute, attribute_generation
from lxt_compose.generation.grids import _frames

ANSWER = (13, 4, 14)
EXACT = 1e-10


def qwen2_vl():
    ids = heads.looked_at(1, 9).clamp(max=55)
    ids[:, 1:5] = torch.tensor([58, 59, 59, 57])
    prompt = {
        "input_ids": ids, "pixel_values": numbers(8, 3 * 2 * 16), "image_grid_thw": torch.tensor([[1, 2, 4]]),
        "mm_token_type_ids": (ids == 59).long(), "attention_mask": torch.ones_like(ids),
    }  # fmt: skip
    return heads.qwen2_vl(), prompt


def frames():
    ids = torch.tensor([[5, *[58] * 20, 7, 8]])
    return heads.video_llava(), {"input_ids": ids, "pixel_values_videos": numbers(1, 4, 3, 28, 28)}


def frames_of_patches():
    ids = torch.tensor([[5, 58, *[56] * 8, 57, 7, 8]])
    prompt = {
        "input_ids": ids, "pixel_values_videos": numbers(32, 3 * 2 * 16), "video_grid_thw": torch.tensor([[2, 4, 4]]),
        "mm_token_type_ids": 2 * (ids == 56).long(), "attention_mask": torch.ones_like(ids),
    }  # fmt: skip
    return heads.qwen2_vl(), prompt


def by_patches_of_seven():
    ids = torch.tensor([[5, 57, *[59] * 4, 58, 7, 8]])
    return heads.gemma3(), {"input_ids": ids, "pixel_values": numbers(1, 3, 28, 28),
                            "token_type_ids": (ids == 59).long()}  # fmt: skip


def two_images():
    ids = torch.tensor([[5, 59, 59, 59, 59, 7, 59, 59, 59, 59, 8]])
    return heads.llava(), {"input_ids": ids, "pixel_values": numbers(2, 3, 28, 28)}


def sound_and_text():
    ids = torch.tensor([[5, *[59] * 10, 7, 8]])
    mask = torch.ones(1, 40, dtype=torch.long)
    prompt = {"input_ids": ids, "input_features": numbers(1, 8, 40), "feature_attention_mask": mask}
    return heads.qwen2_audio(), {**prompt, "attention_mask": torch.ones_like(ids)}


KINDS = {
    "an image": lambda: (heads.llava(), {"input_ids": heads.looked_at(1, 9), "pixel_values": numbers(1, 3, 28, 28)}),
    "two images": two_images,
    "patches": qwen2_vl,
    "an image that looks both ways": by_patches_of_seven,
    "a video": frames,
    "a video of patches": frames_of_patches,
    "a spectrogram": lambda: (heads.whisper(), {"input_features": numbers(1, 8, 40)}),
    "a wave": lambda: (heads.moonshine(), {"input_values": numbers(1, 4000)}),
    "a sound and a text": sound_and_text,
}
ORDER = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])  # of patches, two by two neighbors after each other


def single(model, prompt, row):
    """What attribute() finds for one token of the answer, given those before it."""
    given, before = {**prompt}, torch.tensor([ANSWER[:row]], dtype=torch.long)
    if "input_ids" not in prompt:
        start = torch.tensor([[model.config.decoder_start_token_id]])
        given["decoder_input_ids"] = torch.cat([start, before], 1)
    else:
        given["input_ids"] = torch.cat([prompt["input_ids"], before], 1)
        for name, more in (("mm_token_type_ids", 0), ("token_type_ids", 0), ("attention_mask", 1)):
            if name in prompt:
                given[name] = F.pad(prompt[name], (0, row), value=more)
    return attribute(model, given, target=ANSWER[row])


def places_of(found, kind):
    """The relevance of the places of images and sounds, summed by hand."""
    if kind == "patches":
        return found.relevance["pixel_values"].sum(1)[ORDER]
    if kind == "a video of patches":  # four by four in each frame, written down two by two
        where = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
        found = found.relevance["pixel_values_videos"].sum(1)
        return torch.cat([found[torch.tensor(where).flatten() + 16 * frame] for frame in range(2)])
    if "image" in kind or kind == "a video":
        pixels = found.relevance["pixel_values_videos"][0] if kind == "a video" else found.relevance["pixel_values"]
        side = 7 if "both ways" in kind else 14
        return torch.stack(
            [part.sum() for one in pixels.sum(1) for row in one.split(side) for part in row.split(side, 1)]
        )
    if kind == "a wave":
        return torch.stack([part.sum() for part in found.relevance["input_values"][0].split(17)])
    return found.relevance["input_features"][0].flip(0).flatten()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 1])
def test_rows_are_those_of_single_targets(kind, chunk):
    model, prompt = KINDS[kind]()
    (answer,) = attribute_generation(model, prompt, ANSWER, chunk_size=chunk)
    assert answer.ran == ("3 rows at a time" if chunk is None else "row by row: one row at a time was asked for")
    cells = sum(map(len, answer.sources.grids))
    for row in range(3):
        found = single(model, prompt, row)
        expected = places_of(found, kind)
        assert (answer.relevance[row, :cells] - expected).abs().max() < EXACT
        assert bool(expected.any())
        text = found.scores["input_ids" if "input_ids" in prompt else "decoder_input_ids"][0]
        assert (answer.relevance[row, cells : cells + len(text)] - text).abs().max() < EXACT
        assert not answer.relevance[row, cells + len(text) :].any()
        assert (answer.scores[row] - found.output[0]).abs() < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_ledger_add_up_to_the_score(kind):
    model, prompt = KINDS[kind]()
    (answer,) = attribute_generation(model, prompt, ANSWER, ledger=True)
    sums = answer.sums()
    assert {grid.name for grid in answer.sources.grids} <= sums.keys()
    assert sums["unaccounted"].abs().max() < EXACT
    assert (sum(sums.values()) - answer.scores).abs().max() < EXACT


def test_all_of_the_image_is_handed_on():
    model, prompt = KINDS["an image"]()
    through = attribute_generation(model, prompt, ANSWER)[0].handed_on()
    assert through.sums()["output"].abs().max() < EXACT
    assert (sum(through.sums().values()) - through.scores).abs().max() < EXACT


@pytest.mark.parametrize("kind", ["an image", "patches", "a spectrogram"])
def test_what_a_model_writes_by_itself(kind):
    model, prompt = KINDS[kind]()
    (answer,) = attribute_generation(model, prompt, max_new_tokens=3, do_sample=False)
    assert answer.length == 3
    ids = answer.sources.ids[-3:]
    assert torch.equal(attribute_generation(model, prompt, ids)[0].relevance, answer.relevance)
    if kind != "a spectrogram":  # whose generate() suppresses tokens
        assert answer.predictions.ranks.tolist() == [0, 0, 0]


def test_sides_names_and_maps():
    model, prompt = KINDS["two images"]()
    (answer,) = attribute_generation(model, prompt, ANSWER)
    sources = answer.sources
    assert sources.sides == ("image 1",) * 4 + ("image 2",) * 4 + ("prompt",) * 11 + ("output",) * 3
    assert sources.tokens[:2] == ("image 1 row 0, column 0", "image 1 row 0, column 1")
    assert sources.ids[:8] == (-1,) * 8
    assert torch.equal(answer.maps()["image 2"], answer.relevance[:, 4:8].reshape(3, 2, 2))
    assert [tuple(grid.picture.shape) for grid in sources.grids] == [(28, 28, 3)] * 2


def test_frames_have_names():
    for make, names in (
        (frames, ["frame 1", "frame 2", "frame 3", "frame 4"]),
        (frames_of_patches, ["frames 1-2", "frames 3-4"]),
    ):
        model, prompt = make()
        (answer,) = attribute_generation(model, prompt, ANSWER)
        assert [grid.name for grid in answer.sources.grids] == names
        assert set(names) <= answer.sums().keys()
        assert all(grid.kind == "image" and grid.picture is not None for grid in answer.sources.grids)
        assert answer.report.complete
    assert _frames([2, 1], 1) == ["video 1, frame 1", "video 1, frame 2", "video 2, frame 1"]


def test_the_picture_is_what_the_model_saw():
    model, prompt = qwen2_vl()
    (grid,) = attribute_generation(model, prompt, ANSWER)[0].sources.grids
    patches = prompt["pixel_values"][ORDER].reshape(2, 4, 3, 2, 4, 4)[:, :, :, 0]
    whole = patches.permute(0, 3, 1, 4, 2).reshape(8, 16, 3)
    expected = ((whole - whole.min()) / (whole.max() - whole.min()) * 255).round().to(torch.uint8)
    assert torch.equal(grid.picture, expected)


def test_seconds_are_known_from_the_processor():
    reader = SimpleNamespace(sampling_rate=100, hop_length=5)
    processor = SimpleNamespace(tokenizer=None, feature_extractor=reader)
    model, prompt = KINDS["a spectrogram"]()
    (grid,) = attribute_generation(model, prompt, ANSWER, tokenizer=processor)[0].sources.grids
    assert (grid.rows, grid.columns, grid.seconds) == (8, 40, 0.05)
    assert grid.called()[41] == "sound band 6, 0.05 s"
    model, prompt = KINDS["a wave"]()
    (grid,) = attribute_generation(model, prompt, ANSWER, tokenizer=processor)[0].sources.grids
    assert (grid.rows, grid.columns, grid.seconds) == (1, 236, 0.17)
    assert grid.called()[1] == "sound 0.17 s"
    lines = grid.picture == 255
    assert bool(lines.any(0).all())
    (grid,) = attribute_generation(model, prompt, ANSWER)[0].sources.grids
    assert (grid.seconds, grid.called()[1]) == (None, "sound step 1")


def test_padding_at_the_left_is_taken_off():
    model, prompt = qwen2_vl()
    padded = {name: F.pad(x, (2, 0)) if x.shape == (1, 9) else x for name, x in prompt.items()}
    (answer,) = attribute_generation(model, padded, ANSWER)
    assert torch.equal(answer.relevance, attribute_generation(model, prompt, ANSWER)[0].relevance)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"traced": True}, "traced=True is for texts: pixel_values cannot be copied for each token"),
        ({"input_ids": heads.looked_at(2, 9)}, {}, "one sample, but input_ids has 2 rows"),
        ({"input_ids": None}, {}, "LlavaForConditionalGeneration has no encoder, so its prompt needs input_ids"),
    ],
)
def test_errors(change, options, message):
    model, prompt = KINDS["an image"]()
    with pytest.raises(ValueError, match=message):
        attribute_generation(model, {**prompt, **change}, ANSWER, **options)
