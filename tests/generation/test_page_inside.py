"""Layers and heads on the page: what is kept, and what the tabs show."""

import base64

import pytest
import torch
from browser import Page
from small_transformers import gpt2

from lxt_compose import attribute_generation
from lxt_compose.generation import Layers
from lxt_compose.generation.page_inside import inside_data


@pytest.fixture(scope="module")
def found():
    return attribute_generation(gpt2(), [[3, 4, 5]], [[8, 9, 10]], layers=True)


def numbers(text, dtype=torch.float32):
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype)


def test_the_strongest_of_each_row_are_kept():
    tokens = torch.arange(1.0, 13.0).reshape(2, 2, 3) * torch.tensor([1.0, -1.0, 1.0])
    layers = Layers(("a", "b"), tokens, tokens[:, :, None].expand(2, 2, 2, 3))
    data = inside_data(layers, torch.tensor([0, 1, 1]), torch.eye(2, dtype=torch.float64))
    kept = data["tokens"]
    table = torch.zeros(4, 2).scatter_add_(
        1, numbers(kept["index"], torch.int16).reshape(4, -1).long(), numbers(kept["value"]).reshape(4, -1)
    )
    assert torch.equal(table, torch.stack([tokens[..., 0], tokens[..., 1:].sum(-1)], -1).reshape(4, 2))
    assert torch.equal(numbers(data["sums"]).reshape(2, 2, 2), tokens.sum(-1)[..., None].expand(2, 2, 2))
    assert data["heads"] == 2
    assert "heads" not in inside_data(Layers(("a", "b"), tokens, None), torch.tensor([0, 1, 1]), torch.eye(2).double())


def test_tabs(found, tmp_path):
    with Page(found.page(tmp_path / "page.html"), tmp_path / "profile") as page:
        page.run("document.getElementById('tab-layers').click()")
        page.run("(e => {e.value = 1; e.dispatchEvent(new Event('change'))})(document.querySelector('.explain'))")
        tips = page.run("[...document.querySelectorAll('#trace td')].map(e => e.title)")
        tokens = found[0].layers.tokens[1]
        shown = [float(tip.rpartition(": ")[2].replace("\u2212", "-")) for tip in tips]
        kept = tokens.abs().amax(0) > 0
        assert shown == pytest.approx(tokens.flip(0)[:, kept].flatten().tolist(), rel=1e-3)
        page.run("document.getElementById('tab-heads').click()")
        tips = page.run("[...document.querySelectorAll('#heads-grid td')].map(e => e.title)")
        heads = found[0].layers.heads[1].sum(-1)
        shown = [float(tip.rpartition(": ")[2].replace("\u2212", "-")) for tip in tips]
        assert shown == pytest.approx(heads.flip(0).flatten().tolist(), rel=1e-3)
        page.run("document.querySelectorAll('#heads-grid button')[1].click()")
        assert page.run("document.querySelector('#heads-list h3').textContent").startswith("Head 1 of transformer.h.1:")
        assert not page.messages()


def test_no_tabs_without_layers(tmp_path):
    found = attribute_generation(gpt2(), [[3, 4, 5]], [[8]])
    with Page(found.page(tmp_path / "page.html"), tmp_path / "profile") as page:
        assert page.run("['layers', 'heads'].map(n => document.getElementById('tab-' + n).hidden)") == [True, True]
