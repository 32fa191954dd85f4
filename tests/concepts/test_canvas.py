"""Images as functions of parameters, and their regularizers, against sums by hand."""

import math

import pytest
import torch
from support import assert_close

from lxt_compose.concepts import Ascent, color_matrix
from lxt_compose.concepts.canvas import Canvas, moved, variation


def test_total_variation():
    images = torch.rand(3, 2, 4, 5, dtype=torch.float64)
    expected = 0.0
    for image in images:
        down = [abs(image[c, i, j] - image[c, i + 1, j]) for c in range(2) for i in range(3) for j in range(5)]
        right = [abs(image[c, i, j] - image[c, i, j + 1]) for c in range(2) for i in range(4) for j in range(4)]
        expected += float(sum(down)) / len(down) + float(sum(right)) / len(right)
    assert float(variation(images)) == pytest.approx(expected)


def test_coefficients_are_divided_by_their_frequencies():
    """An image by a sum over frequencies, one by one."""
    canvas = Canvas(1, (1, 4, 6), Ascent(), torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(0))
    leaf = canvas.leaf.detach()[0, 0]
    frequencies = [(u if u < 2 else u - 4, v) for u in range(4) for v in range(4)]
    scale = torch.tensor([1 / max(math.hypot(u / 4, v / 6), 1 / 6) for u, v in frequencies]).double().reshape(4, 4)
    scale = scale / scale.square().mean().sqrt()
    z = torch.zeros(4, 6, dtype=torch.float64)
    for u in range(4):
        for v in range(4):
            a, b = (leaf[u, v] * scale[u, v]).tolist()
            twice = 1 if v in (0, 3) else 2  # the other half of the spectrum is conjugate
            for i in range(4):
                for j in range(6):
                    angle = 2 * math.pi * (u * i / 4 + v * j / 6)
                    z[i, j] += twice * (a * math.cos(angle) - b * math.sin(angle)) / math.sqrt(24)
    assert_close(canvas.images()[0, 0].detach(), torch.sigmoid(z), 1e-9)


def test_shifts_are_whole_pixels_and_turns_quarters_where_they_are(monkeypatch):
    image = torch.rand(1, 1, 4, 6, dtype=torch.float64)

    def drawn(angle, zoom, down, right):
        """The numbers that a generator gives for these, from 0 to 1."""
        values = torch.tensor([[angle], [zoom], [down], [right]], dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *_, **__: (values + 1) / 2)

    drawn(0, 0, 1, 0)
    assert_close(moved(image, Ascent(jitter=1, rotate=0, zoom=0), None)[..., :3, :], image[..., 1:, :], 1e-9)
    drawn(0, 0, 0, 1)
    assert_close(moved(image, Ascent(jitter=2, rotate=0, zoom=0), None)[..., :4], image[..., 2:], 1e-9)
    drawn(1, 0, 0, 0)
    square = image[..., :4]
    turned = moved(square, Ascent(jitter=0, rotate=90, zoom=0), None)
    assert_close(turned, torch.rot90(square, 1, (2, 3)), 1e-9)
    drawn(1, 0, 0, 0)
    wide = moved(image, Ascent(jitter=0, rotate=90, zoom=0), None)  # the middle of it turns as a square does
    assert_close(wide[..., 1:5], torch.rot90(image[..., 1:5], 1, (2, 3)), 1e-9)
    drawn(1, 0, 0, 0)
    half = moved(image, Ascent(jitter=0, rotate=180, zoom=0), None)
    assert_close(half, image.flip(2, 3), 1e-9)


def test_colors_vary_as_in_the_images_they_are_of():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.tensor([[3.0, 0, 0], [2.0, 1, 0], [0, 0.5, 0.5]], dtype=torch.float64)
    pixels = torch.randn(4, 3, 50, 50, generator=generator, dtype=torch.float64)
    photographs = torch.einsum("ij,njhw->nihw", mixed, pixels)
    colors = color_matrix(photographs)
    covariance = torch.cov(photographs.movedim(1, 0).flatten(1))
    assert_close(colors @ colors.T, covariance / covariance.diagonal().max(), 1e-9)
    like = torch.zeros((), dtype=torch.float64)
    plain, colored = (
        Canvas(2, (3, 6, 6), Ascent(colors=c), like, torch.Generator().manual_seed(1)).images().detach()
        for c in (None, colors)
    )
    assert_close(torch.logit(colored), torch.einsum("ij,njhw->nihw", colors, torch.logit(plain)), 1e-9)
