"""Pictures: the right colors for the right numbers, symmetric around 0, and harmless whatever the tokens are."""

import itertools
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser

import pytest
import torch

from lxt_compose import heatmap
from lxt_compose.heatmap.colors import AGAINST, FOR, STRONGEST, contrast, over, scale_of
from lxt_compose.heatmap.picture import DARK, LIGHT, page, visible

HOSTILE = [
    "<script>alert(1)</script>", "&amp;", '" onmouseover="alert(1)', "'><img src=x onerror=alert(1)>", "</style>",
    "a\x1b[31mb", "line\nbreak", "\u202eevil", "</p></div>", "$x_1$", "\\frac", "{{7*7}}", "\x00", "$\\frac$",
]  # fmt: skip


class Reader(HTMLParser):
    """All tags, and for each token its text, its tip and its style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.tokens, self.inside = set(), [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        found = dict(attributes)
        assert not any(name.startswith("on") for name in found)
        if "data-tip" in found:
            self.inside = [found["data-tip"], found["style"], ""]
            self.tokens.append(self.inside)

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.inside[2] += data


def alpha(style):
    """Red minus blue: how strongly a style speaks for (> 0) or against (< 0)."""
    red, green, blue, strength = re.fullmatch(r"background:rgba\((\d+),(\d+),(\d+),([\d.]+)\)", style).groups()
    assert tuple(map(int, (red, green, blue))) in (FOR, AGAINST)
    return float(strength) * (1 if int(red) > int(blue) else -1)


class TestText:
    def test_colors_and_numbers(self):
        picture = heatmap.text(["good", "bad", "so", "la", "la"], [2.0, -4.0, 0.0, 1.0, -1.0])
        tokens = Reader(picture.html()).tokens
        assert [token[2] for token in tokens] == ["good", "bad", "so", "la", "la"]
        assert [token[0] for token in tokens] == ["good  +2", "bad  -4", "so  +0", "la  +1", "la  -1"]
        found = [alpha(token[1]) for token in tokens]
        assert found == pytest.approx([STRONGEST / 2, -STRONGEST, 0, STRONGEST / 4, -STRONGEST / 4], abs=1e-3)

    def test_opposite_scores_have_opposite_colors(self):
        scores = torch.randn(9, generator=torch.Generator().manual_seed(0))
        one, other = (Reader(heatmap.text(list("abcdefghi"), s).html()).tokens for s in (scores, -scores))
        assert [alpha(a[1]) for a in one] == pytest.approx([-alpha(b[1]) for b in other])

    def test_hostile_tokens(self):
        picture = heatmap.text(HOSTILE, torch.linspace(-1, 1, len(HOSTILE)), titles="<b>title</b>\x1b")
        for html in (picture.html(), picture.page()):
            reader = Reader(html)
            assert reader.tags <= {"div", "style", "p", "span", "i", "html", "head", "body", "meta", "title"}
            assert [token[2] for token in reader.tokens] == [visible(token) for token in HOSTILE]
            assert "\x1b" not in html
            assert "\x00" not in html
            assert "\u202e" not in html
        for text in (picture.ansi(dark=True), str(picture)):
            assert "\x1b[31m" not in text
            assert "\x00" not in text
            assert "a\\x1b[31mb" in text

    def test_a_page_stands_alone(self):
        html = heatmap.text(["a"], [1.0]).page()
        assert html.startswith("<!doctype html>")
        assert "Content-Security-Policy\" content=\"default-src 'none'" in html
        assert not re.search(r"(src|href)=|url\(|@import|<script|<link", html)
        assert "prefers-color-scheme:dark" in html
        assert page("<b>", []).count("&lt;b&gt;") == 1

    def test_word_pieces(self):
        tokens, scores = ["un", "##bel", "##iev", "##able", "film"], [1.0, -2.0, 0.5, 0.25, 1.0]
        assert "</span><span" in heatmap.text(tokens, scores).html()
        assert [token[2] for token in Reader(heatmap.text(tokens, scores).html()).tokens][1] == "bel"
        words = heatmap.text(tokens, scores, words=True)
        assert [token[::2] for token in Reader(words.html()).tokens] == [
            ["un ##bel ##iev ##able  -0.25", "unbelievable"], ["film  +1", "film"],
        ]  # fmt: skip
        assert sum(words.sentences[0].scores) == pytest.approx(sum(scores))

    def test_several_texts(self):
        one = heatmap.text([["a", "b"], ["c"]], [[1.0, -2.0], torch.tensor([0.5])], titles=["first", "second"])
        assert [sentence.scale for sentence in one.sentences] == [2.0, 0.5]
        assert one.html().count('class="key"') == 2
        together = heatmap.text([["a", "b"], ["c"]], [[1.0, -2.0], [0.5]], shared=True)
        assert [sentence.scale for sentence in together.sentences] == [2.0, 2.0]
        assert together.html().count('class="key"') == 1
        assert heatmap.text(["a"], [1.0], limit=4).sentences[0].scale == 4

    def test_ansi(self):
        picture = heatmap.text(["good", "so", "##so", "bad"], [1.0, 0.0, 0.01, -0.5])
        plain = re.sub(r"\x1b\[[\d;]*m", "", picture.ansi(dark=True))
        assert plain == "good soso bad"
        for dark in (True, False):
            for colors, form in ((256, r"38;5;\d+;48;5;\d+"), (2**24, r"38;2;\d+;\d+;\d+;48;2;\d+;\d+;\d+")):
                text = picture.ansi(dark=dark, colors=colors)
                assert re.fullmatch(rf"\x1b\[{form}mgood\x1b\[0m soso \x1b\[{form}mbad\x1b\[0m", text)

    def test_ansi_asks_the_terminal(self, monkeypatch):
        picture = heatmap.text(["good"], [1.0])
        monkeypatch.setenv("COLORTERM", "truecolor")
        for setting, dark in (("15;0", True), ("0;15", False), ("0;default;7", False), ("", True)):
            monkeypatch.setenv("COLORFGBG", setting)
            assert picture.ansi() == picture.ansi(dark=dark, colors=2**24)
        monkeypatch.delenv("COLORTERM")
        assert "48;5;" in picture.ansi()

    def test_plain(self):
        lines = str(heatmap.text(["good", "##ish", "bad"], [1.0, 0.5, -0.25])).splitlines()
        assert lines[0] == "         +1           |++++++++++ good"
        assert lines[1].endswith("|+++++      ish")
        assert "--|" in lines[2]

    @pytest.mark.parametrize(
        ("tokens", "scores", "message"),
        [
            (["a", "b"], [1.0], "there are 2 tokens, but 1 scores"),
            (["a"], [float("nan")], "scores must be finite, got nan"),
            (["a"], [[1.0]], "one score for each token, got scores of shape"),
            ([["a"], ["b"]], [[1.0]], "there are 2 texts, but 1 rows of scores"),
        ],
    )
    def test_wrong(self, tokens, scores, message):
        with pytest.raises(ValueError, match=message):
            heatmap.text(tokens, scores)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("abc", [1.0, 2.0, 3.0]), "tokens must be a list of texts, or several such lists, got 'abc'"),
            ((None, [1.0]), "tokens must be a list of texts, or several such lists, got None"),
            (([7], [1.0]), "tokens must be texts, got 7"),
            ((["a"], ["b"]), r"scores must be numbers, got \['b'\] of type list"),
            (
                (["a"], torch.ones(1, dtype=torch.complex64)),
                "scores must be real numbers, got a tensor of",
            ),
            ((["a"], [1.0], 3), "titles must be texts, got 3"),
            ((["a"], [1.0], [3]), r"titles must be texts, got \[3\]"),
        ],
        ids=["a text", "nothing", "ids", "words", "complex", "a number", "numbers"],
    )
    def test_wrong_types(self, arguments, message):
        tokens, scores, *titles = arguments
        with pytest.raises(TypeError, match=message):
            heatmap.text(tokens, scores, titles=titles[0] if titles else None)

    def test_numbers_keep_their_range(self):
        assert heatmap.text(["a"], [1e300]).sentences[0].scale == 1e300

    def test_each_text_has_its_own_legend_or_all_have_one(self):
        rows = [["a"], ["b"]], [[1.0], [2.0]]
        own, shared = heatmap.text(*rows), heatmap.text(*rows, shared=True)
        assert own.html().count('class="key"') == 2
        assert shared.html().count('class="key"') == 1
        assert (own.scale, shared.scale) == (None, 2.0)
        assert repr(own) == "<TextHeatmap: 2 texts, 2 pieces>"
        assert repr(heatmap.text(["a"], [1.0])) == "<TextHeatmap: 1 text, 1 piece>"

    def test_nothing(self):
        assert Reader(heatmap.text([], []).html()).tokens == []
        with pytest.raises(ValueError, match="must be positive and finite, got 0"):
            heatmap.text(["a"], [1.0], limit=0)


class TestColors:
    def test_text_on_them_can_be_read(self):
        """The contrast that WCAG 2 asks for (AA) in both modes, at any strength and for both signs."""
        for background, ink in (LIGHT, DARK):
            for value in torch.linspace(-1, 1, 41).tolist():
                assert contrast(over(background, value), ink) >= 4.5

    def test_scale(self):
        assert scale_of([0.0, 0.0]) == 1
        assert scale_of([-3.0, 2.0]) == 3

    def test_map_is_symmetric_and_centered(self):
        pytest.importorskip("matplotlib")
        from lxt_compose.heatmap.colors import color_map, luminance

        for dark, (background, _) in ((False, LIGHT), (True, DARK)):
            for deep in (False, True):
                colors = color_map(background, dark=dark, deep=deep)
                middle = tuple(round(c * 255) for c in colors(0.5)[:3])
                assert middle == background
                for side in (1, -1):
                    shades = [luminance(tuple(c * 255 for c in colors(0.5 + side * i / 100)[:3])) for i in range(51)]
                    assert all((b - a) * (1 if dark else -1) >= 0 for a, b in itertools.pairwise(shades))


def pixels(path):
    """[height, width, 3] from 0 to 1."""
    from matplotlib import image

    return torch.from_numpy(image.imread(path))[..., :3]


class TestFigures:
    @pytest.fixture(autouse=True)
    def needs_matplotlib(self):
        pytest.importorskip("matplotlib")

    def pictures(self):
        tokens = ["[CLS]", "un", "##believ", "##able", *HOSTILE, "日本", "🐶", "very" * 60]
        values = torch.randn(len(tokens), generator=torch.Generator().manual_seed(0))
        maps = torch.randn(3, 2, 8, 6, generator=torch.Generator().manual_seed(1))
        yield heatmap.text(tokens, values, titles="$\\frac$")
        yield heatmap.trace(["embedding", "block $\\frac$"], tokens, torch.stack([values, -values]))
        yield heatmap.image(maps, titles=["a", "b\nc", "$\\frac$"])
        yield heatmap.image(maps, image=torch.rand(3, 3, 8, 6))

    @pytest.mark.parametrize("number", range(4))
    def test_all_formats(self, number, tmp_path):
        picture = list(self.pictures())[number]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for suffix, start in (
                (".png", b"\x89PNG"),
                (".pdf", b"%PDF"),
                (".svg", b"<?xml"),
                (".html", b"<!doctype html>"),
            ):
                for dark in (False, True):
                    path = picture.save(tmp_path / f"picture{suffix}", dark=dark)
                    assert path.read_bytes().startswith(start)
        assert picture._repr_html_() == picture.html()
        with pytest.raises(ValueError, match=r"saved as \.html, \.png, \.pdf or \.svg, got 'picture.bmp'"):
            picture.save(tmp_path / "picture.bmp")

    @pytest.mark.parametrize("dark", [False, True])
    def test_text_is_colored_within_the_page(self, tmp_path, dark):
        tokens = ["word"] * 60
        picture = pixels(heatmap.text(tokens, [1.0, -1.0] * 30).save(tmp_path / "text.png", dark=dark, dpi=72))
        paper = (DARK if dark else LIGHT)[0]
        background = torch.tensor(paper) / 255
        assert picture.shape[1] == 504
        assert (picture[:, :17] - background).abs().max() < 0.02
        assert (picture[:, -17:] - background).abs().max() < 0.02
        red, blue = (
            float(((picture - torch.tensor(over(paper, sign)) / 255).abs().amax(-1) < 0.02).double().mean())
            for sign in (1, -1)
        )
        assert 0.05 < red < 0.3
        assert red == pytest.approx(blue, rel=0.3)

    def test_image_colors(self, tmp_path):
        """Left half for, right half against: as they are, with the sign turned, and over an image."""
        relevance = torch.ones(8, 8)
        relevance[:, 4:] = -1
        for below in (None, torch.rand(8, 8)):
            one, other = (
                pixels(heatmap.image(sign * relevance, image=below).save(tmp_path / "image.png")) for sign in (1, -1)
            )
            height, width, _ = one.shape
            for picture, sign in ((one, 1), (other, -1)):
                left, right = picture[height // 4, width // 3], picture[height // 4, 2 * width // 3]
                assert (left[0] - left[2]) * sign > 0.2
                assert (right[0] - right[2]) * sign < -0.2

    def test_an_image_shows_through_where_there_is_no_relevance(self, tmp_path):
        below = torch.zeros(4, 4)
        below[:, 2:] = 5
        picture = pixels(heatmap.image(torch.zeros(4, 4), image=below).save(tmp_path / "image.png"))
        height, width, _ = picture.shape
        left, right = picture[height // 3, width // 3], picture[height // 3, 2 * width // 3]
        assert right.mean() - left.mean() > 0.2
        assert left.max() - left.min() < 0.01

    def test_channels_are_added_up(self):
        relevance = torch.randn(2, 3, 4, 5)
        picture = heatmap.image(relevance)
        torch.testing.assert_close(picture.maps, relevance.double().sum(1))
        assert heatmap.image(relevance[0]).maps.shape == (1, 4, 5)
        assert heatmap.image(torch.randn(7, 4, 5)).maps.shape == (7, 4, 5)
        three = torch.randn(3, 4, 5)
        assert heatmap.image(three).maps.shape == (1, 4, 5)
        for options in ({"titles": ["a", "b", "c"]}, {"image": torch.rand(3, 1, 8, 10)}):
            torch.testing.assert_close(heatmap.image(three, **options).maps, three.double())
        assert picture.scales == pytest.approx(picture.maps.abs().amax((1, 2)).tolist())
        assert len(set(heatmap.image(relevance, shared=True).scales)) == 1

    @pytest.mark.parametrize(
        ("relevance", "options", "message"),
        [
            (torch.ones(5), {}, r"must be \[height, width\], .* got \[5\]"),
            (torch.tensor([[float("inf")]]), {}, "relevance holds values that are not finite"),
            (torch.ones(65, 2, 2), {}, "at most 64 images, got 65"),
            (torch.ones(2, 4, 4), {"titles": ["a"]}, "there are 1 titles for 2 pictures"),
            (
                torch.ones(2, 4, 4),
                {"image": torch.ones(4, 4)},
                r"relevance of 2 images does not fit 1, of shape \[4, 4\]",
            ),
            (torch.ones(8, 8), {"image": torch.ones(8, 8, 3)}, r"\[8, 8, 3\]; channels come before height and width"),
            (torch.ones(4, 4), {"limit": -1}, "must be positive and finite, got -1"),
            (torch.ones(4, 4), {"limit": "1"}, "must be positive and finite, got '1'"),
            (torch.ones(4, 4), {"columns": 1.5}, "whole number of columns from 1 on, got 1.5"),
            (torch.ones(4, 4), {"strength": 0}, r"strength must be in \(0, 1\], got 0"),
            (torch.ones(4, 4), {"columns": 0}, "whole number of columns from 1 on, got 0"),
        ],
    )
    def test_wrong_images(self, relevance, options, message):
        with pytest.raises(ValueError, match=message):
            heatmap.image(relevance, **options)

    def test_trace(self):
        scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, -2.0, 0.0]])
        picture = heatmap.trace(["low", "high"], ["ĠâĢ", "ľ", "Ġword"], scores)
        assert picture.labels() == ["“", "…", "word"]
        rows = Reader(picture.html()).tokens
        assert [row[0] for row in rows[:2]] == ["high  ĠâĢ  +0", "high  ľ  -2"]
        assert [alpha(row[1]) for row in rows] == pytest.approx([0, -STRONGEST, 0, STRONGEST / 2, 0, 0], abs=1e-3)
        with pytest.raises(ValueError, match="2 layers and 2 tokens do not fit scores of"):
            heatmap.trace(["low", "high"], ["a", "b"], scores)
        with pytest.raises(ValueError, match=r"0 layers and 0 tokens do not fit scores of \[0, 0\]"):
            heatmap.trace([], [], torch.zeros(0, 0))

    def test_pyplot_is_left_alone(self, tmp_path):
        script = (
            "import sys, torch; from lxt_compose import heatmap; heatmap.image(torch.ones(2, 2)).save(sys.argv[1]);"
            "heatmap.text(['a'], [1.]).save(sys.argv[1]); assert 'matplotlib.pyplot' not in sys.modules"
        )
        ran = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.png")], timeout=60)
        assert ran.returncode == 0


class TestBrowser:
    """A page as a reader sees it."""

    def test_text(self, tmp_path):
        from browser import Page

        tokens = ["[CLS]", "good", "un", "##happy", *HOSTILE]
        scores = [0.0, 2.0, -1.0, -0.5, *([0.25] * len(HOSTILE))]
        path = heatmap.text(tokens, scores, titles="<i>title</i>").save(tmp_path / "page.html")
        with Page(path, tmp_path / "profile") as seen:
            texts = seen.run("[...document.querySelectorAll('.t')].map(e => e.textContent)")
            assert texts == ["[CLS]", "good", "un", "happy", *map(visible, HOSTILE)]
            assert seen.run("document.querySelectorAll('script, img, b, [onmouseover], p div').length") == 0
            color = "getComputedStyle(document.querySelectorAll('.t')[{}]).backgroundColor"
            assert seen.run(color.format(1)) == "rgba({}, {}, {}, 0.72)".format(*FOR)
            assert seen.run(color.format(2)) == "rgba({}, {}, {}, 0.36)".format(*AGAINST)
            boxes = seen.run(
                "[...document.querySelectorAll('.t')].slice(1, 4).map(e => e.getBoundingClientRect())"
                ".map(b => [b.left, b.right])"
            )
            assert boxes[1][1] == pytest.approx(boxes[2][0], abs=0.6)  # pieces of a word touch
            assert boxes[1][0] - boxes[0][1] > 2  # words do not
            tip = "getComputedStyle(document.querySelectorAll('.t')[3], '::after').content"
            assert seen.run(tip) == "none"
            seen.hover(".t", 3)
            assert seen.run(tip) == '"##happy  -0.5"'
            paper = "getComputedStyle(document.body).backgroundColor"
            for scheme, (background, _) in (("light", LIGHT), ("dark", DARK)):
                seen.prefer(scheme)
                assert seen.run(paper) == "rgb({}, {}, {})".format(*background)
            assert seen.messages() == []

    def test_nothing_hangs_over_the_edge(self, tmp_path):
        from browser import Page

        path = heatmap.text(["word"] * 300 + ["x" * 900], [1.0] * 301).save(tmp_path / "page.html")
        with Page(path, tmp_path / "profile", size=(400, 700)) as seen:
            seen.hover(".t", 5)
            assert seen.run("document.documentElement.scrollWidth") <= 400

    def test_the_score_is_read_at_the_edge_too(self, tmp_path):
        image = pytest.importorskip("PIL.Image")
        from browser import Page

        def width_of_tip(seen, selector, number):
            seen.hover(selector, number)
            seen.screenshot(tmp_path / "seen.png")
            picture = image.open(tmp_path / "seen.png").convert("RGB")
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            pixels = pixels.reshape(picture.height, picture.width, 3)
            found = (pixels == torch.tensor([242, 242, 244])).all(-1).any(0).nonzero()
            assert int(found.max()) < picture.width - 1
            return int(found.max() - found.min())

        tokens, scores = ["word"] * 40, torch.ones(2, 40)
        text, trace = heatmap.text(tokens, scores[0]), heatmap.trace(["a layer", "another"], tokens, scores)
        for picture, selector in ((text, ".lxt-text .t"), (trace, ".lxt-trace td")):
            with Page(picture.save(tmp_path / "page.html"), tmp_path / "profile", size=(400, 700)) as seen:
                seen.prefer("dark")
                widths = [width_of_tip(seen, selector, number) for number in (0, 4, 5, 6, 7, 39)]
                assert min(widths) > 60
                assert max(widths) - min(widths) < 3

    def test_a_long_token_does_not_hide_its_score(self):
        tip = Reader(heatmap.text(["x" * 500], [1.0]).html()).tokens[0][0]
        assert len(tip) < 130
        assert tip.endswith("…  +1")

    def test_several_texts_do_not_run_together(self, tmp_path):
        from browser import Page

        path = heatmap.text([["one"], ["two"]], [[0.09183], [0.08344]]).save(tmp_path / "page.html")
        with Page(path, tmp_path / "profile", size=(380, 700)) as seen:
            boxes = seen.run(
                "[...document.querySelectorAll('.one')].map(e => e.getBoundingClientRect()).map(b => [b.top, b.bottom])"
            )
            assert boxes[1][0] - boxes[0][1] > 8
            assert seen.run("getComputedStyle(document.querySelectorAll('.one')[1]).borderTopWidth") == "1px"
            heights = seen.run("[...document.querySelectorAll('.key')].map(e => e.clientHeight)")
            assert max(heights) < 30  # the words of the legend stay in one line

    def test_light_and_dark_images(self, tmp_path):
        pytest.importorskip("matplotlib")
        from browser import Page

        path = heatmap.image(torch.randn(8, 8)).save(tmp_path / "page.html")
        with Page(path, tmp_path / "profile") as seen:
            shown = "[...document.images].map(i => [i.className, i.naturalWidth > 100, i.clientWidth > 0])"
            seen.prefer("light")
            assert seen.run(shown) == [["light", True, True], ["dark", True, False]]
            seen.prefer("dark")
            assert seen.run(shown) == [["light", True, False], ["dark", True, True]]
            assert seen.messages() == []
