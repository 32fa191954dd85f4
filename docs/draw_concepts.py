"""Draw docs/pictures/concepts_*.png: what units of small networks stand for, and what they are fed by.

    PYTHONPATH=.:benchmarks python docs/draw_concepts.py [--parts images references graph prototypes] [--dark]

The units of EfficientNet-Lite0 (trained on ImageNet) by gradient ascent; of the demo's CNN, trained on digits, the
samples where a unit is most relevant, what feeds it, and prototypes of two digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from concepts import trained_on_marks
from torch import nn

from lxt_compose import concepts
from lxt_compose.concepts import Ascent
from lxt_compose.demo.data import Digits, load_digits
from lxt_compose.demo.models import SmallCNN
from lxt_compose.demo.photographs import as_input, load_photographs
from lxt_compose.demo.pretrained import load_cnn
from lxt_compose.heatmap import Picture

FOLDER = Path(__file__).resolve().parent / "pictures"
UNITS = ("_blocks.0[3, 9]", "_blocks.2[5, 11]", "_blocks.5[7, 20]", "_conv_head[12, 340]")


def images() -> Picture:
    """Images that make units of EfficientNet most active, from the first layers to the last one."""
    colors = concepts.color_matrix(as_input(load_photographs()))
    how = Ascent(steps=192, rate=0.06, jitter=8, rotate=8, zoom=0.08, total_variation=25.0, colors=colors)
    found = concepts.visualize(load_cnn(), UNITS, shape=(3, 112, 112), limits=(-0.992, 1.0), how=how)
    return found.heatmap(columns=4)


def references(model: nn.Module, digits: Digits) -> Picture:
    """The scans where the unit with the largest mean is most relevant, cut to its receptive field."""
    stream = digits.test_images
    found = concepts.find_references(model, stream.split(100), "down.1", k=8, composite="epsilon_plus")
    number = found.table(1)[0]["number"]
    return concepts.gallery(
        model, found, "down.1", number, lambda n: stream[n : n + 1], composite="epsilon_plus", crop=True
    )


def graph(model: nn.Module, digits: Digits) -> Picture:
    """What feeds the answer 5, on scans of fives."""
    fives = digits.test_images[digits.test_labels == 5]
    layers = ["down.1", "residual.second", "stem.0"]
    return concepts.concept_graph(model, fives, None, layers, target=5, keep=4).heatmap()


def prototypes(model: nn.Module, digits: Digits) -> Picture:
    """Prototypes of two digits, by the relevance of the last convolution's channels."""
    chosen = (digits.train_labels == 1) | (digits.train_labels == 9)
    scans, labels = digits.train_images[chosen], digits.train_labels[chosen]
    vectors = concepts.concept_vectors(model, scans.split(50), "down.1", labels=labels)
    return concepts.fit_prototypes(vectors, count=2, covariance="diag").heatmap(most=5)


PARTS = {"references": references, "graph": graph, "prototypes": prototypes}


def main() -> None:
    """Train, find, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=["images", *PARTS])
    parser.add_argument("--dark", action="store_true", help="on dark, to look at; the pages have the light ones")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    model = trained_on_marks(SmallCNN, digits, 12, 0, mark=0.0)
    for part in options.parts:
        picture = images() if part == "images" else PARTS[part](model, digits)
        print(picture.save(options.folder / f"concepts_{part}.png", dark=options.dark, dpi=110))


if __name__ == "__main__":
    main()
