"""Images in grids: the very pixels, in their places."""

import pytest
import torch

from lxt_compose.heatmap import image_grid

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_drawn_is_what_was_given(channels):
    images = torch.rand(3, channels, 4, 5) * 1.5 - 0.2
    figure = image_grid(images, titles=["a", "b", "c"], columns=2).figure(dark=True)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    for axes, image in zip(figure.axes, images, strict=True):
        shown = torch.as_tensor(axes.images[0].get_array())
        expected = image.clamp(0, 1).double()
        assert torch.allclose(shown, expected[0] if channels == 1 else expected.permute(1, 2, 0))
    places = [axes.get_position() for axes in figure.axes]
    assert places[0].x0 == places[2].x0 < places[1].x0
    assert places[0].y0 == places[1].y0 > places[2].y0


def test_it_shows_itself(tmp_path):
    grid = image_grid(torch.rand(2, 1, 4, 4), titles=["<b>", ""])
    assert "&lt;b&gt;" in grid.html()
    assert repr(grid) == "<ImageGrid: 2 x [1, 4, 4]>"
    assert grid.save(tmp_path / "grid.png").stat().st_size > 500


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.rand(2, 2, 4, 4), {}, r"must be \[n, 1 or 3 channels, height, width\], got \[2, 2, 4, 4\]"),
        (torch.rand(4, 4), {}, "must be"),
        (torch.rand(145, 1, 2, 2), {}, "at most 144 images, got 145"),
        (torch.rand(1, 1, 2, 2), {"columns": 0}, "from 1 on, got 0"),
        (torch.rand(1, 1, 2, 2), {"titles": ["a", "b"]}, "2 titles for 1 picture"),
    ],
)
def test_errors(images, options, message):
    with pytest.raises(ValueError, match=message):
        image_grid(images, **options)
