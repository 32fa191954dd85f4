"""Arguments of the command `explain` that are for whole answers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .explain_answer import AnswerOptions

_OTHERS = ("target", "against", "at")
_OWN = ("chat", "contrast", "page", "layers")
_OF_TEXTS = ("chat", "contrast", "layers")
_SAME = (
    "text", "image", "chat", "generate", "continuation", "contrast", "device", "ledger", "words", "page", "out",
    "text_pair",
)  # fmt: skip


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a parser."""
    parser.add_argument("--text", help="the text")
    parser.add_argument(
        "--texts", metavar="FILE", help="a text on each line, explained one after the other; - is standard input"
    )
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="the image; with --text for models that read both and write"
    )
    parser.add_argument(
        "--chat", type=Path, metavar="FILE", help="a JSON file with messages, each with role and content"
    )
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument(
        "--generate", type=int, metavar="N", help="explain what the model goes on with, N tokens at most"
    )
    whole.add_argument("--continuation", metavar="TEXT", help="explain each token of this answer")
    whole.add_argument(
        "--outputs", action="store_true", default=None,
        help="explain all that a tagger, a detector, a segmentation or question answering answers",
    )  # fmt: skip
    parser.add_argument(
        "--text-pair", metavar="TEXT", help="the text that goes with --text, such as what it asks about"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="with --outputs: how likely a detected thing must be (default: 0.5)",
    )
    parser.add_argument("--contrast", metavar="TEXT", help="another answer to compare with")
    parser.add_argument(
        "--layers", action="store_true", default=None, help="tell layers and heads of the model too, on the page"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page to read an answer on (.html)")


def is_asked(options: argparse.Namespace) -> bool:
    """Return whether a whole answer is to be explained.

    Raises:
        ValueError: options do not go together.
    """
    written = options.generate is not None or options.continuation is not None
    asked = written or bool(options.outputs)
    _check_sources(options, written)
    for name in _OTHERS if asked else _OWN:
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name} does not go with --generate, --continuation and --outputs, which explain a whole answer"
                if asked
                else f"--{name} is for answers: give --generate N or --continuation TEXT too"
            )
    if options.outputs and options.words:
        raise ValueError("--words does not go with --outputs")
    if options.threshold is not None and not options.outputs:
        raise ValueError("--threshold is for --outputs")
    for name in _OF_TEXTS if options.outputs else ("text_pair",) if written else ():
        if getattr(options, name) is not None:
            which = "--outputs" if options.outputs else "--generate and --continuation"
            raise ValueError(f"--{name.replace('_', '-')} does not go with {which}")
    return asked


def _check_sources(options: argparse.Namespace, written: bool) -> None:
    """Raise unless there is one thing to explain.

    Raises:
        ValueError: there is none, or there are several.
    """
    given = [name for name in ("text", "texts", "image", "chat") if getattr(options, name) is not None]
    if not given:
        raise ValueError("nothing to explain: give --text, --texts, --image or --chat")
    if options.text_pair is not None and given not in (["text"], ["texts"]):
        raise ValueError("--text-pair goes with --text")
    if len(given) == 1 and not (written and given == ["image"]):
        return
    if given == ["text", "image"] and not (written or options.outputs):
        raise ValueError("--image with --text is for models that write: give --generate N or --continuation TEXT too")
    if given == ["image"]:
        raise ValueError("--generate and --continuation need a prompt: give --text beside --image")
    if given != ["text", "image"]:
        raise ValueError(f"--{' and --'.join(given)} do not go together")


def texts_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the texts of a file, or of standard input: those of its lines that are not empty.

    Raises:
        ValueError: it cannot be read, or there are none.
    """
    if options.texts is None:
        return ()
    try:
        whole = sys.stdin.read() if options.texts == "-" else Path(options.texts).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the texts {options.texts} cannot be read: {error}") from error
    found = tuple(line for line in whole.splitlines() if line.strip())
    if not found:
        raise ValueError(f"{options.texts} holds no texts")
    return found


def options_of(options: argparse.Namespace, **more: Any) -> AnswerOptions:
    """Return the options; `more` are those that the command line reads separately."""
    same = {name: getattr(options, name) for name in _SAME} | {"layers": bool(options.layers)}
    same |= {"outputs": bool(options.outputs)} | ({} if options.threshold is None else {"threshold": options.threshold})
    return AnswerOptions(**same, texts=texts_of(options), **more)
