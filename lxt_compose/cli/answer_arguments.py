"""Arguments of the command `explain` that are for whole answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .explain_answer import AnswerOptions

_OTHERS = ("image", "target", "against")
_OWN = ("chat", "contrast", "page")
_SAME = ("text", "chat", "generate", "continuation", "contrast", "device", "ledger", "words", "page", "out")


def add(parser: argparse.ArgumentParser, source: Any) -> None:
    """Add the arguments to a parser; that for a chat to its group of sources."""
    source.add_argument(
        "--chat", type=Path, metavar="FILE", help="a JSON file with messages, each with role and content"
    )
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument(
        "--generate", type=int, metavar="N", help="explain what the model goes on with, N tokens at most"
    )
    whole.add_argument("--continuation", metavar="TEXT", help="explain each token of this answer")
    parser.add_argument("--contrast", metavar="TEXT", help="another answer to compare with")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page to read an answer on (.html)")


def is_asked(options: argparse.Namespace) -> bool:
    """Return whether a whole answer is to be explained.

    Raises:
        ValueError: options do not go together.
    """
    asked = options.generate is not None or options.continuation is not None
    for name in _OTHERS if asked else _OWN:
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name} does not go with --generate and --continuation, which explain a whole answer"
                if asked
                else f"--{name} is for answers: give --generate N or --continuation TEXT too"
            )
    return asked


def options_of(options: argparse.Namespace, **more: Any) -> AnswerOptions:
    """Return what was asked for; `more` is what the command line reads in a way of its own."""
    return AnswerOptions(**{name: getattr(options, name) for name in _SAME}, **more)
