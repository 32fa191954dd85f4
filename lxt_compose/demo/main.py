"""The demo: train on digits, explain, check the sums, draw; and explain two networks that come trained."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..composite import Composite
from . import photographs, pretrained, sentences
from .data import Digits, load_digits, require_packages
from .explain import Explained, cnn_composite, explain, vit_composite
from .figure import Row, draw
from .models import SmallCNN, SmallViT
from .training import Settings, accuracy, default_cache, trained

SHOWN = 8
MEASURED = 200


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo; `str()` is the text that the command prints."""

    text: str
    figures: tuple[Path, ...] = ()
    trained_now: tuple[str, ...] = ()
    accuracies: dict[str, float] = field(default_factory=dict)
    complete: bool = True

    def __str__(self) -> str:
        return self.text


def run_demo(
    out: Path, *, quick: bool = False, retrain: bool = False, cache: Path | None = None, progress: bool = False
) -> DemoResult:
    """Explain digits by two networks that are trained here, photographs and sentences by two that come trained.

    Args:
        out: Folder for the pictures; made if it is not there.
        quick: Train for a moment only: enough to see that all works, not for good pictures.
        retrain: Train even if the cache holds the weights.
        cache: Folder for the trained weights; by default `default_cache()`.
        progress: Show a bar on stderr while training.

    Raises:
        DemoError: A package of the `demo` extra is not installed. Without those of `pretrained`, the digits are all.
    """
    require_packages()
    out.mkdir(parents=True, exist_ok=True)
    parts = [
        explain_digits(out, quick=quick, retrain=retrain, cache=cache, progress=progress),
        explain_photographs(out),
        explain_sentences(out),
    ]
    return DemoResult(
        "\n\n".join(part.text for part in parts),
        tuple(path for part in parts for path in part.figures),
        parts[0].trained_now,
        parts[0].accuracies,
        all(part.complete for part in parts),
    )


def explain_photographs(out: Path) -> DemoResult:
    """Explain photographs by a CNN for ImageNet, and write `out/photographs.png`; without its packages, say so."""
    if lacking := pretrained.missing(pretrained.CNN_PACKAGES):
        return _left_out("photographs", lacking)
    shown, path = photographs.load_photographs(), out / "photographs.png"
    found = photographs.explain_photographs(pretrained.load_cnn(), photographs.as_input(shown))
    photographs.draw_photographs(shown, found, path)
    return _part(photographs.describe(shown, found), path, found.complete)


def explain_sentences(out: Path) -> DemoResult:
    """Explain how similar sentences are, and write `out/sentences.png` and `.html`; without its packages, say so."""
    if lacking := pretrained.missing(pretrained.ENCODER_PACKAGES):
        return _left_out("sentences", lacking)
    model, tokenizer = pretrained.load_sentence_encoder()
    pairs = [sentences.explain_pair(model, tokenizer, pair) for pair in sentences.PAIRS]
    path = sentences.picture_of(pairs).save(out / "sentences.png")
    return _part(sentences.describe(pairs), path, all(pair.complete for pair in pairs))


def _left_out(what: str, lacking: list[str]) -> DemoResult:
    return DemoResult(f"{what} are left out: {', '.join(lacking)} is not installed ({pretrained.INSTALL})")


def _part(text: str, path: Path, complete: bool) -> DemoResult:
    return DemoResult(f"{text}\n\npicture: {path}", (path,), complete=complete)


def explain_digits(out: Path, *, quick: bool, retrain: bool, cache: Path | None, progress: bool) -> DemoResult:
    """Train (or load) both networks, explain test scans, and write `out/relevance.png`."""
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
    draw(
        _rows(images, found), _headings(labels, found), path, "Which pixels speak for the digit that the network names?"
    )
    parts.append(f"picture: {path}")
    complete = all(one.report.complete for one in found.values())
    return DemoResult("\n\n".join(parts), (path,), tuple(trained_now), accuracies, complete)


def _rows(images: Tensor, found: dict[str, Explained]) -> list[Row]:
    rows = [Row("scan", list(images[:SHOWN, 0]), is_relevance=False)]
    for name, one in found.items():
        rows.append(Row(f"{name}\nrelevance", list(one.relevance[:SHOWN, 0])))
        rows.append(Row(f"{name}\ngradient\n× input", list(one.plain[:SHOWN, 0])))
    return rows


def _headings(labels: Tensor, found: dict[str, Explained]) -> list[str]:
    """Return for each scan its label and the prediction of the networks."""
    return [
        f"a {labels[index]}\n" + ", ".join(f"{name}: {one.predicted[index]}" for name, one in found.items())
        for index in range(SHOWN)
    ]


def _about(digits: Digits) -> str:
    train, test = len(digits.train_labels), len(digits.test_labels)
    return f"handwritten digits, 8 x 8 pixels: {train} scans to train on, {test} to test on"


def _describe(name: str, right: float, composite: Composite, one: Explained) -> str:
    """Return accuracy, coverage and sums of one network as text."""
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
