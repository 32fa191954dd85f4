"""Images and sounds on the page: colors of places, what a place led to, boxes, the axis of time."""

import base64
from types import SimpleNamespace

import heads
import pytest
import torch
from browser import Page
from heads import numbers

from lxt_compose import attribute_generation, attribute_outputs
from lxt_compose.generation.page_grids import folded, packed_cells
from lxt_compose.heatmap import Piece

PLACES = """[...document.querySelectorAll('#pictures canvas')].map(e => {
const d = e.getContext('2d').getImageData(0, 0, e.width, e.height).data, count = e.width * e.height;
return Array.from({length: count}, (_, k) => (d[4 * k] > d[4 * k + 2] ? 1 : -1) * d[4 * k + 3])})"""


@pytest.fixture(scope="module")
def found():
    ids = torch.tensor([[5, 59, 59, 59, 59, 7, 59, 59, 59, 59, 8]])
    prompt = {"input_ids": ids, "pixel_values": numbers(2, 3, 28, 28)}
    return attribute_generation(heads.llava(), prompt, (13, 4, 14), contrast=[(20, 21)])


@pytest.fixture
def page(found, tmp_path):
    with Page(found.page(tmp_path / "page.html"), tmp_path / "profile") as opened:
        yield opened
        assert not opened.messages()


def strengths(maps, cover=0.8):
    """What is drawn for the places of all pictures, from -255 to 255."""
    values = torch.cat([values.flatten() for values in maps])
    return (values / values.abs().max() * cover * 255).tolist()


def drawn(page):
    return [x for one in page.run(PLACES) for x in one]


def test_places_light_up_for_a_token(page, found):
    page.hover("#output .t", 2)
    expected = strengths([one[2] for one in found[0].maps().values()])
    page.run("(e => {e.value = 40; e.dispatchEvent(new Event('input'))})(document.getElementById('cover'))")
    assert drawn(page) == pytest.approx([x / 2 for x in expected], abs=1.01)
    captions = page.run("[...document.querySelectorAll('figcaption')].map(e => e.textContent)")
    total = float(found[0].maps()["image 2"][2].sum())
    assert captions[1].startswith(f"image 2 {'+' if total > 0 else chr(0x2212)}{abs(total):.3g}"[:12])


def test_a_place_shows_what_it_led_to(page, found):
    page.run("document.querySelector('#pictures canvas').focus()")
    for key in ("ArrowRight", "ArrowDown"):
        page.ask("Input.dispatchKeyEvent", type="keyDown", key=key)
    relevance = found[0].maps()["image 1"][:, 1, 1]
    said = page.run("document.getElementById('details').textContent")
    assert said.startswith("image 1: row 1, column 1What it led to")
    colors = page.run("[...document.querySelectorAll('#output .t')].map(e => e.style.background)")
    assert [color.startswith("rgba(var(--for)") for color in colors] == [x > 0 for x in relevance.tolist()]
    page.ask("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert page.run("document.querySelector('#details h3').textContent") == "The whole answer"


def test_the_contrast_of_places(page, found):
    page.run("document.querySelector('input[value=contrast]').click()")
    other = found[0].other.maps()
    maps = [one.sum(0) - other[name].sum(0) for name, one in found[0].maps().items()]
    assert drawn(page) == pytest.approx(strengths(maps), abs=1.01)


def test_the_axis_of_a_sound(tmp_path):
    reader = SimpleNamespace(tokenizer=None, feature_extractor=SimpleNamespace(sampling_rate=16000, hop_length=160))
    answer = attribute_generation(heads.whisper(), {"input_features": numbers(1, 8, 40)}, (7, 8), tokenizer=reader)
    with Page(answer.page(tmp_path / "page.html"), tmp_path / "profile", (420, 700)) as page:
        ticks = page.run("[...document.querySelectorAll('.axis span')].map(e => e.textContent)")
        assert ticks == ["0 s", "0.1 s", "0.2 s", "0.3 s"]
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert not page.messages()


def test_boxes_of_a_detector(tmp_path):
    found = attribute_outputs(heads.detr(), {"pixel_values": numbers(1, 3, 32, 32)}, threshold=0.2)
    with Page(found.page(tmp_path / "page.html"), tmp_path / "profile") as page:
        assert page.run("document.querySelectorAll('.box').length") == found[0].length
        page.hover("#output .t", 0)
        (box,) = page.run("[...document.querySelectorAll('.box.on')].map(e => [e.style.left, e.style.width])")
        left, _, right, _ = found[0].boxes[0].tolist()
        assert [float(x[:-1]) for x in box] == pytest.approx([100 * left, 100 * (right - left)], abs=0.1)
        assert page.run("document.getElementById('prompt').hidden")
        assert not page.messages()


def test_numbers_in_two_bytes():
    rows = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    data = packed_cells(rows)
    assert packed_cells(rows[:, :0]) == {}
    steps = torch.frombuffer(bytearray(base64.b64decode(data["cells"])), dtype=torch.int16)
    assert steps.tolist() == [16384, -32767, 0, 0, 0, 0]


def test_many_tokens_of_an_image_are_one_piece():
    image = [Piece("<image>", (k,), special=True) for k in range(1, 5)]
    words = [Piece("word", (k,), space=True) for k in range(5, 8)]
    shown = folded([Piece("a", (0,)), *image, *words])
    assert [(piece.text, piece.tokens) for piece in shown[:2]] == [("a", (0,)), ("<image> \u00d7 4", (1, 2, 3, 4))]
    assert shown[2:] == words
