"""Arguments of the command `concepts`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .concepts import ConceptOptions

_SAME = ("out", "texts", "field", "images", "data", "by", "k", "target", "against", "batch_size")
_SHOWN = ("show", "count", "crop", "pictures", "device")


DESCRIPTION = (
    "Stream texts or images once, keep for each unit the samples where it is most relevant or most active, and write a "
    "gallery. Called again, it goes on where it was stopped."
)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that other commands do not have."""
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint folder with its tokenizer or image processor, or module:factory"
    )
    parser.add_argument(
        "--units",
        action="append",
        required=True,
        metavar="NAME",
        help="units: a module by name or glob, such as 'encoder.layer.*.intermediate' or 'layer.3[0:64]'; may be "
        "repeated",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--texts", type=Path, metavar="FILE", help="a text on each line, or .jsonl")
    source.add_argument("--images", type=Path, metavar="DIR", help="a folder of images")
    source.add_argument("--data", metavar="MODULE:NAME", help="a data set, or a function that makes one")
    parser.add_argument("--field", default="text", help="the entry of .jsonl that is the text (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the results")
    parser.add_argument(
        "--by", default="relevance", choices=("relevance", "activation"), help="what counts (default: %(default)s)"
    )
    parser.add_argument("--k", type=int, default=16, help="samples that are kept of each unit (default: %(default)s)")
    parser.add_argument(
        "--show", type=int, default=8, metavar="N", help="units in the gallery, by their means (default: %(default)s)"
    )
    parser.add_argument(
        "--count", type=int, default=8, metavar="N", help="samples of each unit there (default: %(default)s)"
    )
    parser.add_argument("--crop", action="store_true", help="cut images to receptive fields, texts to snippets")
    parser.add_argument("--pictures", action="store_true", help="write a PNG for each unit too")
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="samples at a time (default: %(default)s)"
    )


def options_of(options: argparse.Namespace, **more: Any) -> ConceptOptions:
    """Return the options; `more` are those that the command line reads separately.

    Raises:
        ValueError: a number is below 1.
    """
    for name in ("k", "show", "count", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(options, name)}")
    given = {name: getattr(options, name) for name in (*_SAME, *_SHOWN)}
    return ConceptOptions(units=tuple(options.units), **given, **more)
