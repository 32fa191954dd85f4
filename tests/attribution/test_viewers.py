"""Pictures and tables follow the names of dimensions: series, spectrograms, videos, volumes, graphs, text, images."""

import pytest
import torch
from support import Fn, assert_close, make

from lxt_compose import Attribution, Composite, attribute, blocks, heatmap

EXACT = Composite(formulation="gradient")


def classify(x, dims, **options):
    """An attribution whose relevance is all different numbers."""
    weight = torch.arange(1.0, x.numel() + 1).reshape(x.shape) / x.numel()

    def forward(self, x):
        y = (x * weight).flatten(1).sum(1) if "batch" in dims else (x * weight).sum()[None]
        return torch.stack([y, -y], 1)

    return attribute(Fn(forward).eval(), {"x": x}, target=0, dims={"x": dims}, composite=EXACT, **options)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_a_series_is_drawn_with_its_signal():
    found = classify(torch.randn(2, 3, 40), "batch channel time")
    shown = found.heatmap()
    assert isinstance(shown, heatmap.SeriesHeatmap)
    assert_close(shown.scores, found.relevance.sum(1).double())
    assert_close(shown.signal, found.inputs["x"].double())
    assert shown.titles == tuple(f"sample {i}, target {c}" for i, c in enumerate(found.target.tolist()))
    assert found.heatmap(sample=1).scores.shape == (1, 40)


def test_a_spectrogram_is_an_image_with_low_bins_at_the_bottom():
    found = classify(torch.randn(2, 5, 9), "batch mel time")
    assert found.scores.shape == (2, 9)
    assert_close(found.heatmap().maps, found.relevance.double().flip(1))
    turned = classify(torch.randn(2, 9, 5), "batch time mel")
    assert_close(turned.heatmap().maps, turned.relevance.double().mT.flip(1))


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ("batch channel depth height width", (2, 1, 20, 4, 5)),
        ("batch frame channel height width", (2, 20, 3, 4, 5)),
        ("batch channel frame height width", (2, 3, 20, 4, 5)),
    ],
)
def test_volumes_and_videos_are_rows_of_slices(dims, shape):
    found = classify(torch.randn(shape), dims)
    channel = dims.split().index("channel")
    expected = found.relevance.sum(channel)
    assert_close(found.scores, expected)
    shown = found.heatmap()
    assert shown.columns == 8
    assert len(shown.maps) == 16
    assert_close(shown.maps[[0, 7, 15]], torch.stack([expected[0, 0], expected[0, 19], expected[1, 19]]).double())
    assert_close(shown.below[7], found.inputs["x"].double().mean(channel)[0, 19])
    assert len(set(shown.scales)) == 1
    assert shown.titles[7] == f"sample 0, target {int(found.target[0])}\n{'depth' if 'depth' in dims else 'frame'} 19"


def test_nodes_are_bars():
    found = classify(torch.randn(7, 3), "node feature")
    assert len(found) == 1
    assert found.scores.shape == (7,)
    shown = found.heatmap()
    assert isinstance(shown, heatmap.BarsHeatmap)
    top = int(found.scores.abs().argmax())
    assert shown.rows(0)[0][:2] == (f"node {top}", pytest.approx(float(found.scores[top])))
    assert "carbon 3" in found.heatmap([f"carbon {i}" for i in range(7)]).html()


def test_names_of_features():
    pandas = pytest.importorskip("pandas")
    found = attribute(make("mlp")[0], make("mlp")[1], composite=EXACT)
    names = [f"feature <{i}>" for i in range(found.relevance.shape[1])]
    shown = found.heatmap(names, sample=0)
    assert "feature &lt;1&gt;" in shown.html()
    assert "feature <1>" in str(shown)
    table = found.to_dataframe(names)
    assert isinstance(table, pandas.DataFrame)
    assert table.pivot_table(index="sample", columns="name", values="score").loc[1, names[2]] == pytest.approx(
        float(found.scores[1, 2])
    )
    with pytest.raises(ValueError, match="there are 1 names, but input has scores for 6"):
        found.to_dataframe(["a"])


def test_another_picture_under_the_relevance():
    found = classify(torch.randn(1, 3, 6, 6), "batch channel height width")
    below = torch.rand(1, 3, 12, 12)
    assert_close(found.heatmap(image=below).below, below.double().mean(1))
    assert_close(found.heatmap().below, found.inputs["x"].double().mean(1))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ("batch channel height width", (1, 5, 6)),
        ("batch height width", (5, 6)),
        ("batch mel time", (5, 6)),
        ("batch frequency time", (5, 6)),
        ("batch frame channel height width", (1, 3, 5, 6)),
        ("batch channel depth height width", (1, 4, 5, 6)),
    ],
)
def test_samples_and_slices_are_not_taken_for_colors(dims, shape, count):
    shown = classify(torch.randn(count, *shape), dims).heatmap()
    frames = {"frame": 1, "depth": 4}
    expected = count * next((frames[name] for name in frames if name in dims), 1)
    assert shown.maps.shape == (expected, 5, 6)
    assert shown.below.shape == (expected, 5, 6)


@pytest.mark.parametrize(
    ("dims", "shape", "columns"),
    [
        ("batch channel time", (2, 3, 4), ["time"]),
        ("batch channel depth height width", (1, 1, 2, 3, 4), ["depth", "row", "column"]),
        ("batch frame channel height width", (1, 2, 1, 3, 4), ["frame", "row", "column"]),
        ("node feature", (5, 2), ["node"]),
        ("time batch feature", (3, 2, 4), ["time"]),
        ("batch group group", (2, 3, 4), ["group", "group2"]),
    ],
)
def test_columns_of_a_table_are_called_by_the_dimensions(dims, shape, columns):
    pytest.importorskip("pandas")
    if dims.startswith("time"):  # whose samples come second
        model = Fn(lambda self, x: x.sum((0, 2))[:, None]).eval()
        found = attribute(model, {"x": torch.randn(shape)}, dims={"x": dims}, composite=EXACT)
    else:
        found = classify(torch.randn(shape), dims)
    table = found.to_dataframe()
    assert list(table.columns) == ["sample", *columns, "score"]
    scores = found.scores if "batch" in dims else found.scores[None]
    row = table.iloc[-1]
    assert row["score"] == pytest.approx(float(scores.flatten()[-1]))
    assert [int(row[name]) + 1 for name in ["sample", *columns]] == list(scores.shape)


class TestTextWithImages:
    @pytest.fixture
    def found(self):
        transformers = pytest.importorskip("transformers")
        vision = transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28,
            patch_size=14,
        )  # fmt: skip
        text = transformers.LlamaConfig(
            vocab_size=128, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
        )
        config = transformers.LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=127, image_seq_length=4
        )
        model, ids = transformers.LlavaForConditionalGeneration(config).eval(), torch.randint(0, 120, (2, 10))
        ids[:, 2:6] = 127
        given = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 28, 28), "attention_mask": torch.ones_like(ids)}
        given["attention_mask"][1, :2] = 0
        return attribute(model, given, layers=blocks(model), target=3)

    def test_each_input_has_its_viewer(self, found):
        class Names:
            def convert_ids_to_tokens(self, row):
                return [f"t{i}" for i in row]

        both = found.heatmap()
        assert isinstance(both, heatmap.Several)
        assert {type(one) for one in both} == {heatmap.TextHeatmap, heatmap.ImageHeatmap}
        text = found.heatmap(Names(), sample=0)
        assert [piece.text for piece in text.sentences[0].pieces] == [f"t{i}" for i in found.inputs["input_ids"][0]]
        assert isinstance(found.heatmap(input="pixel_values"), heatmap.ImageHeatmap)
        assert len(found.tokens(sample=1)) == int(found.real(1).sum()) == 8
        assert_close(found.patches(14).sum((1, 2)), found.relevance["pixel_values"].sum((1, 2, 3)), 1e-5)
        names, scores = found.trace(1)
        assert names[0] == "input_ids"
        assert scores.shape == (len(names), 10)
        assert len(names) > 1
        with pytest.raises(KeyError, match="there is no input 'text'; inputs: "):
            found.heatmap(input="text")

    def test_both_in_one_file(self, found, tmp_path):
        pytest.importorskip("matplotlib")
        both = found.heatmap(sample=0)
        assert both.save(tmp_path / "both.png").stat().st_size > 1000
        page = both.save(tmp_path / "both.html").read_text()
        assert "lxt-text" in page
        assert "lxt-image" in page
        assert "pixel_values" in page


def test_choices_are_texts_of_their_own():
    found = Attribution(
        relevance=torch.randn(2, 3, 4, 5), output=torch.zeros(2), target=None,
        report=classify(torch.randn(1, 2), "batch feature").report,
        inputs={"input_ids": torch.arange(24).reshape(2, 3, 4)},
        dims={"input_ids": ("batch", "choice", "token", "feature")},
    )  # fmt: skip
    shown = found.heatmap()
    assert [sentence.title for sentence in shown.sentences][-1] == "sample 1, choice 2"
    assert [piece.text for piece in shown.sentences[-1].pieces] == ["20", "21", "22", "23"]
    assert shown.sentences[-1].scores == pytest.approx(found.scores[1, 2].tolist())


def test_what_was_explained_stands_in_the_text():
    found = classify(torch.randn(2, 3), "batch feature")
    assert f"target 0, 0, output {float(found.output[0]):.4g}" in repr(found)
    many = classify(torch.randn(9, 3), "batch feature")
    assert "target 0, 0, 0, 0, ... 9 in all" in repr(many)
    pairs = Attribution(
        relevance=torch.randn(2, 3), output=torch.zeros(2), target=torch.tensor([[2, 1], [0, -1]]), report=many.report
    )
    assert "target 2 - 1, 0 - others, output" in repr(pairs)


def test_images_are_titled_by_what_they_are_explained_for():
    found = classify(torch.randn(2, 3, 6, 6), "batch channel height width")
    assert found.heatmap().titles == tuple(f"sample {i}, target {c}" for i, c in enumerate(found.target.tolist()))
    assert found.heatmap(titles=["a", "b"]).titles == ("a", "b")
    assert found.heatmap(sample=1).titles == ("",)
