"""Pictures of series, of things with names, and of long traces."""

import pytest
import torch

from lxt_compose import heatmap

pytest.importorskip("matplotlib")


class TestSeries:
    def test_a_long_one_is_drawn_in_sums(self):
        values = torch.randn(1, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        shown = heatmap.series(values, values)
        assert shown.step == 3
        assert float(shown.bins.sum()) == pytest.approx(float(values.sum()))
        assert float(shown.bins[0, 1]) == pytest.approx(float(values[0, 3:6].sum()))
        axes = shown.figure().axes[0]
        drawn = torch.as_tensor(axes.images[0].get_array())
        torch.testing.assert_close(drawn[0], shown.bins[0] / shown.scales[0])
        assert axes.images[0].get_extent()[1] == 2000 + 1 - 0.5  # 667 strips of three

    def test_scales(self):
        values = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
        assert heatmap.series(values).scales == (2.0, 0.5)
        assert heatmap.series(values, shared=True).scales == (2.0, 2.0)
        assert heatmap.series(values, limit=3.0).scales == (3.0, 3.0)
        assert repr(heatmap.series(values[0])) == "<SeriesHeatmap: 1 x 2 points>"

    @pytest.mark.parametrize("dark", [False, True])
    def test_lines_of_the_channels(self, dark):
        figure = heatmap.series(torch.randn(2, 9), torch.randn(2, 3, 9), titles=["a", "b"]).figure(dark=dark)
        assert [len(axes.lines) for axes in figure.axes[:2]] == [3, 3]
        assert figure.axes[1].get_title() == "b"

    @pytest.mark.parametrize(
        ("values", "signal", "message"),
        [
            (torch.ones(2, 2, 2), None, r"must be \[time\] or \[n, time\], got \[2, 2, 2\]"),
            (torch.ones(2, 3), torch.ones(2, 4), r"a signal of \[2, 1, 4\] does not fit relevance of \[2, 3\]"),
            (torch.tensor([1.0, torch.nan]), None, "must be finite"),
            (torch.ones(65, 3), None, "at most 64 series, got 65"),
        ],
    )
    def test_wrong_ones(self, values, signal, message):
        with pytest.raises(ValueError, match=message):
            heatmap.series(values, signal)


class TestBars:
    def test_the_most_relevant_first_and_the_rest_added_up(self):
        shown = heatmap.bars(["a", "b", "c", "d"], [0.5, -2.0, 1.0, 0.25], most=2)
        assert shown.rows(0) == [("b", -2.0, -1.0), ("c", 1.0, 0.5), ("2 more, added up", 0.75, None)]
        assert heatmap.bars(["a", "b", "c"], [1.0, 2.0, 3.0], most=2).rows(0)[-1][0] == "a"  # one more needs no sum
        assert str(shown).splitlines()[0].split() == ["-2", "----------|", "b"]

    def test_drawn(self):
        figure = heatmap.bars(["a", "x" * 90], torch.tensor([[1.0, -2.0], [0.0, 0.0]]), titles=["s", "t"]).figure(
            dark=True
        )
        assert [patch.get_width() for patch in figure.axes[0].patches] == [-1.0, 0.5]
        assert not figure.axes[0].patch.get_visible()  # or it would be white on dark
        assert figure.axes[0].get_yticklabels()[0].get_text().endswith("…")

    def test_names_cannot_break_the_page(self):
        html = heatmap.bars(["<script>alert(1)</script>"], [1.0], titles="<b>").html()
        assert "<script" not in html
        assert "<b>" not in html

    @pytest.mark.parametrize(
        ("names", "scores", "options", "error", "message"),
        [
            (["a"], [1.0, 2.0], {}, ValueError, r"there are 1 names, but scores of shape \[1, 2\]"),
            ("ab", [1.0, 2.0], {}, TypeError, "names must be a list of texts, got 'ab'"),
            (["a"], [1.0], {"most": 0}, ValueError, "most must be a whole number from 1 on, got 0"),
        ],
    )
    def test_wrong_ones(self, names, scores, options, error, message):
        with pytest.raises(error, match=message):
            heatmap.bars(names, scores, **options)


class TestLongTraces:
    def test_wrap(self):
        scores = torch.randn(12, 500, generator=torch.Generator().manual_seed(0)).double()
        shown = heatmap.trace([f"layers.{i}" for i in range(12)], ["word"] * 500, scores)
        figure = shown.figure()
        assert figure.get_size_inches()[0] < 17
        drawn = [torch.as_tensor(axes.images[0].get_array()) for axes in figure.axes[:-1]]
        torch.testing.assert_close(torch.cat(drawn, 1), scores)
        widths = [axes.get_position().width / image.shape[1] for axes, image in zip(figure.axes, drawn, strict=False)]
        assert max(widths) - min(widths) < 1e-9  # the last part's cells are no wider
        assert shown.html().count("<table>") == len(drawn) == 9
        assert shown.html().count("<td ") == 12 * 500

    def test_as_many_as_are_wanted(self):
        shown = heatmap.trace(["a"], ["x"] * 10, torch.ones(1, 10), columns=4)
        assert len(shown.figure().axes) == 4
        with pytest.raises(ValueError, match="columns must be a whole number from 1 on, got 0"):
            heatmap.trace(["a"], ["x"], torch.ones(1, 1), columns=0)


def test_several_pictures_in_one():
    pictures = [heatmap.text(["a"], [1.0]), heatmap.bars(["b"], [2.0])]
    shown = heatmap.several(pictures, titles=["one", "<two>"])
    assert list(shown) == pictures
    assert len(shown) == 2
    assert "&lt;two&gt;" in shown.html()
    assert str(shown).splitlines()[0] == "one"
    sizes = [picture.figure().get_size_inches() for picture in pictures]
    width, height = shown.figure().get_size_inches()
    assert width == pytest.approx(max(size[0] for size in sizes))
    assert height > sum(size[1] for size in sizes)
    with pytest.raises(ValueError, match="there are no pictures"):
        heatmap.several([])
    with pytest.raises(TypeError, match=r"must be those that lxt_compose\.heatmap made"):
        heatmap.several(["a"])
