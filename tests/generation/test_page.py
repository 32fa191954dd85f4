"""The page in a browser: what lights up, by pointer, keyboard and controls; every state without an error."""

import json
import re
from dataclasses import replace

import pytest
import torch
from browser import Page
from small_transformers import gpt2

from lxt_compose import attribute_generation
from lxt_compose.generation import GenerationAttribution


@pytest.fixture(scope="module")
def found():
    return attribute_generation(gpt2(), [[3, 4, 5], [6, 7]], [[8, 9, 10], [11]], contrast=[[12], [13]])


@pytest.fixture
def page(found, tmp_path):
    with Page(found.page(tmp_path / "page.html"), tmp_path / "profile") as opened:
        yield opened
        assert not opened.messages()


HELD = "[...document.querySelectorAll('.t.on')].map(e => e.textContent)"


def press(page, key, shift=False):
    page.ask("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=8 * shift)
    page.ask("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=8 * shift)


def place(page, selector, number):
    return page.run(
        f"(() => {{const b = document.querySelectorAll({json.dumps(selector)})[{number}].getClientRects()[0]; "
        f"return [b.x + b.width / 2, b.y + b.height / 2]}})()"
    )


def mouse(page, kind, at):
    page.ask("Input.dispatchMouseEvent", type=f"mouse{kind}", x=at[0], y=at[1], button="left", clickCount=1)


def click(page, selector, number=0):
    at = place(page, selector, number)
    for kind in ("Moved", "Pressed", "Released"):
        mouse(page, kind, at)


def signs(colors):
    """1 for red, -1 for blue, 0 for none."""
    return [0 if not color or color.endswith(", 0)") else 1 if color.startswith("rgba(214") else -1 for color in colors]


def computed(page):
    return page.run(
        "[...document.querySelectorAll('#prompt .t, #output .t')].map(e => getComputedStyle(e).backgroundColor)"
    )


def expected(values):
    strongest = values.abs().max()
    return [0 if abs(v) * 0.72 < 5e-4 * strongest else 1 if v > 0 else -1 for v in values.tolist()]


def test_a_token_lights_up_its_sources_and_a_source_what_it_led_to(page, found):
    relevance = found[0].relevance
    page.hover("#output .t", 2)
    assert signs(computed(page)) == expected(relevance[2])
    assert page.run(HELD) == ["10"]
    mouse(page, "Moved", [5, 5])
    assert signs(computed(page)) == expected(relevance.sum(0))
    click(page, "#output .t", 1)
    page.hover("#output .t", 2)  # which changes nothing as long as one is held
    assert signs(computed(page)) == expected(relevance[1])
    click(page, "#details button")
    assert signs(computed(page)) == [0] * 3 + expected(torch.cat([torch.zeros(1), relevance[:, 4]])[1:].double())
    click(page, "#prompt .t", 0)
    assert signs(computed(page)) == [0] * 3 + expected(relevance[:, 0])
    assert page.run(HELD) == ["3"]
    press(page, "Escape")
    assert page.run(HELD) == []


def test_dragging_and_the_keyboard_take_spans(page, found):
    relevance = found[0].relevance
    mouse(page, "Pressed", place(page, "#output .t", 0))
    mouse(page, "Moved", place(page, "#output .t", 1))
    mouse(page, "Released", place(page, "#output .t", 1))
    assert page.run(HELD) == ["8", "9"]
    assert signs(computed(page)) == expected(relevance[:2].sum(0))
    page.run("document.getElementById('output').focus()")
    press(page, "Home")
    assert page.run(HELD) == ["8"]
    press(page, "ArrowRight")
    press(page, "ArrowRight", shift=True)
    assert page.run(HELD) == ["9", "10"]
    assert signs(computed(page)) == expected(relevance[1:3].sum(0))


def test_controls(page, found):
    click(page, "input[value=handed]")
    click(page, "#output .t", 2)
    assert signs(computed(page)) == expected(found[0].handed_on().relevance[2])
    click(page, "input[value=contrast]")
    both = found[0].relevance.sum(0)
    both[:3] -= found[0].other.relevance[:, :3].sum(0)
    assert signs(computed(page)) == expected(both)
    assert page.run("document.querySelector('#against').textContent") == "12"
    click(page, "input[value=other]")
    assert page.run("document.querySelector('#output').textContent") == "12"
    click(page, "input[value=own]")
    page.run("(e => {e.value = 2; e.dispatchEvent(new Event('input'))})(document.getElementById('many'))")
    assert sum(map(abs, signs(computed(page)))) == 2
    click(page, "#tab-account")
    shown = page.run("[...document.querySelectorAll('[role=tabpanel]')].filter(e => !e.hidden).map(e => e.id)")
    assert shown == ["account"]
    assert "nothing uncovered" in page.run("document.querySelector('.tables').textContent")
    page.run("(e => {e.value = 1; e.dispatchEvent(new Event('change'))})(document.getElementById('answer'))")
    assert page.run("document.querySelector('#prompt').textContent") == "6 7"


def test_the_index_opens_answers(page, found):
    click(page, "#tab-index")
    rows = page.run("[...document.querySelectorAll('#index-list tr')].map(e => [...e.cells].map(c => c.textContent))")
    assert [row[:3] for row in rows[1:]] == [["1", "3 4 5", "8 9 10"], ["2", "6 7", "11"]]
    assert all(row[3].startswith("complete") for row in rows[1:])
    click(page, "#index-list button", 1)
    assert page.run("document.querySelector('#output').textContent") == found[1].text
    assert not page.run("document.getElementById('text').hidden")


def test_light_dark_paper_and_a_narrow_window(found, tmp_path):
    path = found.page(tmp_path / "page.html")
    with Page(path, tmp_path / "profile", (420, 700)) as page:
        colors = set()
        for scheme in ("light", "dark"):
            page.prefer(scheme)
            colors.add(page.run("getComputedStyle(document.body).backgroundColor"))
        assert len(colors) == 2
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        page.ask("Emulation.setEmulatedMedia", media="print")
        assert page.run("getComputedStyle(document.querySelector('.controls')).display") == "none"
        assert not page.messages()


def test_thousands_of_tokens_and_scripts_from_right_to_left(found, tmp_path):
    answer = found[1]
    count, generator = 1500, torch.Generator().manual_seed(0)
    relevance = torch.randn(count, 2 * count, generator=generator).tril(count - 1)
    words = ["\u0645\u0631\u062d\u0628\u0627", "\u65e5\u672c", "word"]
    known = answer.predictions
    long = replace(
        answer, other=None, relevance=relevance, scores=relevance.sum(1),
        spans=tuple(replace(answer.spans[0], start=t, stop=t + 1) for t in range(count)),
        sources=replace(
            answer.sources, ids=(0,) * 2 * count, special=(False,) * 2 * count,
            tokens=tuple(words[t % 3] for t in range(2 * count)), sides=("prompt",) * count + ("output",) * count,
        ),
        predictions=replace(
            known, probabilities=torch.ones(count), ranks=torch.zeros(count), tokens=("x",) * count,
            top_probabilities=torch.ones(count, 1), top_tokens=(("x",),) * count,
        ),
    )  # fmt: skip
    path = GenerationAttribution((long,)).page(tmp_path / "long.html")
    with Page(path, tmp_path / "profile") as page:
        page.hover("#output .t", 1400)
        strongest = relevance[1400].abs().topk(12).indices.sort().values.tolist()
        assert [place for place, sign in enumerate(signs(computed(page))) if sign] == strongest
        assert page.run("getComputedStyle(document.querySelector('#prompt')).unicodeBidi") == "plaintext"
        assert re.search(
            r"are kept: [\d.]+ % of all relevance", page.run("document.querySelector('#details').textContent")
        )
        assert not page.messages()
