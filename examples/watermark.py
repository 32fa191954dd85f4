"""Train a classifier that does not look at a watermark, by a loss on its relevance.

    python examples/watermark.py [--epochs 30] [--penalty 10]

Each training scan of a digit has a bright pixel at its border, at a place that tells the class. A model that is trained
as usual reads the pixel and not the digit: where test scans have the pixel of another class, it fails. The second model
has the same data, and pays for the share of AttnLRP relevance that falls on the pixel (right for the right reasons,
Ross et al. 2017). Relevance is differentiated: the graph of :meth:`Composite.trace` with ``differentiable=True`` holds
forward pass and relevance, and ``backward()`` leads through both to the weights. It needs the extra ``demo``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import presets
from lxt_compose.demo.data import Digits, load_digits
from lxt_compose.demo.models import SmallViT

CLASSES = 10


@dataclass(frozen=True)
class Settings:
    """Passes over the data, scans in a batch, largest learning rate, and seed."""

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0


def places(classes: Tensor) -> Tensor:
    """Return for each class [n] where its watermark is, [n, 1, 8, 8]: in the first five rows, left or right."""
    rows, columns = classes % 5, (classes // 5) * 7
    where = torch.zeros(len(classes), 1, 8, 8, dtype=torch.bool)
    where[torch.arange(len(classes)), 0, rows, columns] = True
    return where


def marked(images: Tensor, classes: Tensor) -> Tensor:
    """Return the images with the watermarks of these classes."""
    return images.masked_fill(places(classes), 1.0)


def share_on(where: Tensor, relevance: Tensor) -> Tensor:
    """Return the part of the absolute relevance of each image [n, 1, 8, 8] that is at these places: [n]."""
    size = relevance.abs()
    return (size * where).flatten(1).sum(1) / (size.flatten(1).sum(1) + 1e-6)


def train(digits: Digits, penalty: float, settings: Settings) -> nn.Module:
    """Return a model trained on scans with watermarks.

    Args:
        digits: the scans.
        penalty: what the share of relevance on the watermark costs; 0 is training as usual.
        settings: how to train.
    """
    torch.manual_seed(settings.seed)
    model, size = SmallViT(dropout=0.0).eval(), settings.batch_size
    images, labels = marked(digits.train_images, digits.train_labels), digits.train_labels
    explain = presets.attnlrp().trace(model, images[:size], target=labels[:size], differentiable=True)
    steps = settings.epochs * (len(images) // size)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    for step in range(steps):
        part = torch.randint(len(images), (size,)) if step else torch.arange(size)
        loss = F.cross_entropy(model(images[part]), labels[part])
        if penalty:
            relevance = explain(images[part], target=labels[part]).relevance
            loss = loss + penalty * share_on(places(labels[part]), relevance).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the part of the images that are answered rightly."""
    return float((model(images).argmax(1) == labels).float().mean())


def results(model: nn.Module, digits: Digits) -> dict[str, float]:
    """Return the accuracy on test scans by their watermark, and the share of relevance on it."""
    images, labels = digits.test_images, digits.test_labels
    wrong = (labels + 1) % CLASSES
    own = marked(images, labels)
    relevance = presets.attnlrp().trace(model, own, target=labels)(own).relevance
    return {
        "watermark of its class": accuracy(model, own, labels),
        "no watermark": accuracy(model, images, labels),
        "watermark of another class": accuracy(model, marked(images, wrong), labels),
        "relevance on the watermark": float(share_on(places(labels), relevance).mean()),
    }


def main() -> None:
    """Print the accuracies without and with the penalty."""
    from tabulate import tabulate

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--penalty", type=float, default=10.0)
    options = parser.parse_args()
    digits, settings = load_digits(), Settings(options.epochs)
    found = {name: results(train(digits, penalty, settings), digits)
             for name, penalty in (("as usual", 0.0), ("relevance penalized", options.penalty))}  # fmt: skip
    rows = [[what, *(f"{100 * each[what]:.1f} %" for each in found.values())] for what in found["as usual"]]
    print(tabulate(rows, headers=["", *found]))


if __name__ == "__main__":
    main()
