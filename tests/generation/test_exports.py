"""Explained answers as tables, data, figures and pages, without a browser."""

import base64
import hashlib
import json
import re
import struct

import pytest
import torch
from small_transformers import gpt2, ids, t5

from lxt_compose import attribute_generation
from lxt_compose.generation.page_data import data_of, verdict


@pytest.fixture(scope="module")
def found():
    return attribute_generation(gpt2(), [[3, 4, 5], [6, 7]], [[8, 9], [10]], contrast=[[11], [12, 13]])


def numbers(packed, kind="f"):
    data = base64.b64decode(packed)
    return list(struct.unpack(f"<{len(data) // 4}{kind}", data))


def test_a_table_has_a_row_for_each_source_before_each_target(found):
    table = found.to_dataframe()
    assert list(table) == [
        "sample", "target", "start", "stop", "position", "side", "role", "special", "token", "relevance",
    ]  # fmt: skip
    assert len(table) == 3 + 4 + 2
    assert table["side"].tolist() == ["prompt"] * 6 + ["output"] + ["prompt"] * 2
    first = table[(table["sample"] == 0) & (table["start"] == 1)]
    assert first["relevance"].tolist() == found[0].relevance[1, :4].tolist()
    assert first["token"].tolist() == ["3", "4", "5", "8"]


def test_arrays_with_named_dimensions(found):
    pytest.importorskip("xarray")
    data = found.to_xarray(0)
    assert dict(data.sizes) == {"target": 2, "source": 5, "group": 3}
    assert data["relevance"].values.tolist() == found[0].relevance.tolist()
    assert data["sums"].sum("group").values == pytest.approx(data["score"].values)


def test_json_says_all(found):
    first, second = json.loads(found.to_json())
    assert first["source"] == ["3", "4", "5"]
    assert first["target_ids"] == [8, 9]
    assert torch.tensor(first["source_attributions"]).shape == (2, 3)
    assert torch.allclose(torch.tensor(first["target_attributions"]).double(), found[0].relevance[:, 3:], atol=1e-6)
    assert second["contrast"]["target"] == ["12", "13"]
    assert sum(amounts[1] for amounts in first["sums"].values()) == pytest.approx(first["scores"][1])


def test_a_figure_on_given_axes():
    matplotlib = pytest.importorskip("matplotlib.figure")
    (answer,) = result = attribute_generation(t5(), ids(1, 4), [7, 8, 9])
    axes = result.plot()
    assert axes.get_images()[0].get_array().shape == (3, 4 + 1 + 2)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(token) for token in answer.sources.ids[:-1]]
    own = matplotlib.Figure().add_subplot()
    assert result.plot(own) is own


def test_what_a_page_is_given_is_the_relevance(found):
    answer = found[0]
    data = data_of(answer)
    start, index, value = (
        numbers(data["direct"][name], kind) for name, kind in zip(("start", "index", "value"), "IIf", strict=True)
    )
    rows = torch.zeros(2, 5)
    for row in range(2):
        for k in range(start[row], start[row + 1]):
            rows[row, index[k]] = value[k]
    assert torch.allclose(rows, answer.relevance.float())
    assert [piece["t"] for piece in data["pieces"]] == ["3", "4", "5", "8", "9"]
    assert data["rows"] == [[3, 3, "8"], [4, 4, "9"]]
    assert data["direct"]["kept"] == pytest.approx(1)
    assert numbers(data["handed"]["sums"]["output"]) == [0, 0]
    contrast = data["contrast"]
    assert sum(contrast["sums"].values()) == pytest.approx(contrast["score"])
    prompt = answer.relevance[:, :3].sum(0) - answer.other.relevance[:, :3].sum(0)
    assert torch.allclose(torch.tensor(numbers(contrast["values"]))[:3], prompt.float())


def test_only_the_strongest_of_many_sources_are_kept():
    (answer,) = attribute_generation(gpt2(), ids(1, 20), [7, 8])
    data = data_of(answer, sources=4)
    assert data["direct"]["most"] == 22  # few enough for all of them
    long = data_of(_many(answer, 300), sources=4)
    assert long["direct"]["most"] == 4
    assert 0 < long["direct"]["kept"] < 1
    assert numbers(long["direct"]["start"], "I") == [0, 4]


def _many(answer, count):
    from dataclasses import replace

    sources = replace(
        answer.sources, ids=tuple(range(count)), tokens=tuple(map(str, range(count))),
        sides=("prompt",) * (count - 1) + ("output",), special=(False,) * count,
    )  # fmt: skip
    spans = answer.spans[:1]
    known = answer.predictions
    few = replace(
        known, logits=known.logits[:1], probabilities=known.probabilities[:1], ranks=known.ranks[:1],
        top_ids=known.top_ids[:1], top_probabilities=known.top_probabilities[:1], top_tokens=known.top_tokens[:1],
    )  # fmt: skip
    relevance = torch.randn(1, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    relevance[:, -1] = 0
    return replace(answer, sources=sources, spans=spans, relevance=relevance, scores=relevance.sum(1), predictions=few)


def test_the_page_runs_one_script_and_nothing_else(found, tmp_path):
    path = found.page(tmp_path / "out.html", title="<b>reasons</b>")
    page = path.read_text("utf-8")
    assert "&lt;b&gt;reasons&lt;/b&gt;" in page
    script = re.search(r"<script>(.*?)</script>", page, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src &#39;none&#39;; script-src &#39;sha256-{digest}&#39;" in page
    assert not re.search(r"(src|href)=|https?:|@import|url\(", page.replace("<iframe", ""))
    assert len(json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))) == 2
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        found.page(tmp_path / "no" / "out.html")


def test_tokens_cannot_break_out_of_the_page():
    class Names:
        all_special_ids = ()

        def convert_ids_to_tokens(self, ids):
            return [f"</script><script>alert({i})</script>\u2028\x00" for i in ids]

        def decode(self, ids):
            return f"<!--<script>{ids[0]}"

    result = attribute_generation(gpt2(), [3, 4], [5], tokenizer=Names())
    page = result._repr_html_()
    assert page.count("srcdoc=") == 1
    assert "<script" not in page
    from html import unescape

    inside = unescape(page[page.index('srcdoc="') + 8 : page.rindex('"')])
    assert inside.count("<script") == 2
    assert "<!--" not in inside
    assert "\u2028" not in inside


def test_the_verdict_is_in_percent_where_all_parts_have_one_sign(found):
    answer = found[0]
    from dataclasses import replace

    relevance = torch.zeros_like(answer.relevance)
    relevance[:, 0], relevance[1, 3] = 0.5, 0.25
    said = verdict(replace(answer, relevance=relevance, scores=torch.ones(2, dtype=torch.float64)))
    assert said == (
        "complete: of the score, 50% is on the prompt, 12% is on the answer's own tokens, 38% is on biases and the like"
    )
    said = verdict(replace(answer, relevance=relevance * 2, scores=torch.ones(2, dtype=torch.float64)))
    assert said == (
        "complete: the score +2 is +2 on the prompt, +0.5 on the answer's own tokens, -0.5 on biases and the like"
    )
