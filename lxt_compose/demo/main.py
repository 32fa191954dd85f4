"""What the demo does: train, explain, check the sums, draw."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..composite import Composite
from .data import Digits, load_digits, require_packages
from .explain import Explained, cnn_composite, explain, vit_composite
from .figure import Row, draw
from .models import SmallCNN, SmallViT
from .training import Settings, accuracy, default_cache, trained

SHOWN = 8
MEASURED = 200


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; `str()` is the text that the command prints."""

    text: str
    figure: Path
    trained_now: tuple[str, ...]
    accuracies: dict[str, float]
    complete: bool

    def __str__(self) -> str:
        return self.text


def run_demo(
    out: Path, *, quick: bool = False, retrain: bool = False, cache: Path | None = None, progress: bool = False
) -> DemoResult:
    """Train (or load) both networks, explain test scans, and write `out/relevance.png`.

    Args:
        out: Folder for the picture; made if it is not there.
        quick: Train for a moment only: enough to see that all works, not for good pictures.
        retrain: Train even if the cache holds the weights.
        cache: Folder for the trained weights; by default `default_cache()`.
        progress: Show a bar on stderr while training.

    Raises:
        DemoError: A package of the `demo` extra is not installed.
    """
    require_packages()
    out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    chosen = torch.cat([digits.one_of_each(SHOWN), torch.arange(MEASURED)])
    images, labels = digits.test_images[chosen], digits.test_labels[chosen]
    found: dict[str, Explained] = {}
    accuracies: dict[str, float] = {}
    parts, trained_now = [_about(digits)], []
    for name, build, epochs, composite in (
        ("CNN", SmallCNN, 2 if quick else 25, cnn_composite()),
        ("ViT", SmallViT, 3 if quick else 40, vit_composite()),
    ):
        settings = Settings(epochs)
        model, cached = trained(build, digits, settings, cache or default_cache(), retrain=retrain, progress=progress)
        trained_now += [] if cached else [name]
        accuracies[name] = accuracy(model, digits.test_images, digits.test_labels)
        found[name] = explain(composite, model, images)
        parts.append(_describe(name, accuracies[name], composite, found[name]))
    path = out / "relevance.png"
    draw(_rows(images, found), _headings(labels, found), path)
    parts.append(f"picture: {path}")
    complete = all(one.report.complete for one in found.values())
    return DemoResult("\n\n".join(parts), path, tuple(trained_now), accuracies, complete)


def _rows(images: Tensor, found: dict[str, Explained]) -> list[Row]:
    rows = [Row("scan", images[:SHOWN, 0], is_relevance=False)]
    for name, one in found.items():
        rows.append(Row(f"{name}\nrelevance", one.relevance[:SHOWN, 0]))
        rows.append(Row(f"{name}\ngradient\n× input", one.plain[:SHOWN, 0]))
    return rows


def _headings(labels: Tensor, found: dict[str, Explained]) -> list[str]:
    """Say what each scan is, and what the networks take it for."""
    return [
        f"a {labels[index]}\n" + ", ".join(f"{name}: {one.predicted[index]}" for name, one in found.items())
        for index in range(SHOWN)
    ]


def _about(digits: Digits) -> str:
    train, test = len(digits.train_labels), len(digits.test_labels)
    return f"handwritten digits, 8 x 8 pixels: {train} scans to train on, {test} to test on"


def _describe(name: str, right: float, composite: Composite, one: Explained) -> str:
    """Write down accuracy, coverage and sums of one network."""
    missing, shares = one.missing(), one.shares()
    shown, measured = missing[:SHOWN], missing[SHOWN:]
    ends = ", ".join(f"{place} {share:.0%}" for place, share in shares.items())
    rest = "biases and softmax" if one.elsewhere else "biases"
    same = "the same as before, bit for bit" if one.untouched else "NOT the same as before"
    return f"""\
{name}: {right:.1%} of the test scans are named right
{composite!r}

{one.report}

relevance of all pixels against the logit that it explains, difference / logit:
  {len(shown)} scans in the picture: median {shown.median():.1%}, largest {shown.max():.1%}
  {len(measured)} test scans: median {measured.median():.1%}, largest {measured.max():.1%}
where the logits went, all together: {ends}, {rest} {1 - sum(shares.values()):.0%}
the rules are off again: logits and gradients are {same}"""
