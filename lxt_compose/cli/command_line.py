"""The command line, `lxt-compose`: demo, report, explain, presets, rules. The only place that prints.

Answers go to stdout, progress and errors to stderr. Exit codes: 0 all is well; 1 the report has uncovered operations;
2 an error, told in one line; 130 interrupted.
"""

import argparse
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path

from .. import command_start
from ..demo import run_demo
from ..errors import CompositeError, UncoveredError
from .commands import Answer, CompositeOptions, ExplainOptions, explain, list_presets, list_rules, report

FINE = 0
INCOMPLETE = 1
FAILED = 2
INTERRUPTED = 130
_EXIT_CODES = "exit codes: 0 all is well, 1 the report has uncovered operations, 2 an error, 130 interrupted"
_FOR_USERS = (CompositeError, RuntimeError, ValueError, TypeError, OSError, ImportError)
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 0, 1 for an incomplete report, 2 for an error, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        command_start.begin()
        code = run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("lxt-compose: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except Exception as error:  # whatever it is, the user gets one line, and the traceback on request
        if options.debug:
            traceback.print_exc()
        print(f"lxt-compose: error: {_told(error)}", file=sys.stderr)
        return FAILED


def _demo(options: argparse.Namespace) -> int:
    result = run_demo(
        options.out, quick=options.quick, retrain=options.retrain, cache=options.cache, progress=not options.no_progress
    )
    print(result)
    if not result.complete:
        raise UncoveredError("relevance passed through operations without a rule: see the tables above")
    return FINE


def _report(options: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr):  # what the model's own code prints is no part of the answer
        answer = report(
            options.model,
            say=_say(options),
            rules=_rules_wanted(options),
            shapes=options.input_shape,
            every_row=options.every_row,
            ledger=options.ledger,
            width=_width(),
        )
    _print(answer, options)
    return FINE if answer.complete else INCOMPLETE


def _explain(options: argparse.Namespace) -> int:
    import torch

    wishes = ExplainOptions(
        text=options.text,
        image=options.image,
        target=options.target,
        against=options.against,
        rules=_rules_wanted(options),
        dtype=getattr(torch, options.dtype),
        device=options.device,
        ledger=options.ledger,
        words=options.words,
        out=options.out,
        color=sys.stdout.isatty() and not os.environ.get("NO_COLOR"),
        width=_width(),
    )
    with redirect_stdout(sys.stderr):
        answer = explain(options.model, wishes, say=_say(options))
    _print(answer, options)
    if not answer.complete:
        _say(options)(f"warning: some operations have no rule: see lxt-compose report {options.model}")
    return FINE


def _presets(options: argparse.Namespace) -> int:
    _print(list_presets(options.name, width=_width()), options)
    return FINE


def _rules(options: argparse.Namespace) -> int:
    _print(list_rules(options.name, width=_width()), options)
    return FINE


def _print(answer: Answer, options: argparse.Namespace) -> None:
    print(json.dumps(answer.data, indent=2, ensure_ascii=False) if options.json else answer.text)


def _told(error: Exception) -> str:
    """Return an error in one line, with its type unless it is an error for users."""
    message = " ".join(str(error).split())
    if not message or not isinstance(error, _FOR_USERS):
        return f"{type(error).__name__}: {message}".removesuffix(": ")
    return message


def _rules_wanted(options: argparse.Namespace) -> CompositeOptions:
    return CompositeOptions(options.preset, tuple(options.preset_arg), options.merge_batch_norm)


def _say(options: argparse.Namespace) -> Callable[[str], None]:
    """Return the function that reports progress: on stderr, or nowhere."""
    return lambda line: None if options.quiet else print(f"lxt-compose: {line}", file=sys.stderr)


def _width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _version() -> str:
    try:
        return metadata.version("lxt-compose")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split("," if "," in text else "x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape such as 1,3,32,32 or 1x3x32x32")
    return shape


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lxt-compose", description="Layer-wise relevance propagation for PyTorch models.", epilog=_EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=f"lxt-compose {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(commands.add_parser(
        "demo",
        help="train a small CNN and a small ViT on scans of digits, and explain them",
        description="Train a small CNN and a small ViT on scans of handwritten digits (once: the weights are kept), "
        "explain what they name, print what the rules cover and write DIR/relevance.png.",
    ))  # fmt: skip
    _add_report(commands.add_parser(
        "report",
        help="print which rules cover which modules and operations of a model",
        description="Run a model once on made-up inputs under a preset, and print which rules covered what.",
        epilog=_EXIT_CODES,
    ))  # fmt: skip
    _add_explain(commands.add_parser(
        "explain",
        help="explain what a model makes of a text or an image",
        description="Explain one output of a local transformers checkpoint: the next token of a causal language model, "
        "or a class of a classifier of texts or images.",
        epilog=_EXIT_CODES,
    ))  # fmt: skip
    for name, run in (("presets", _presets), ("rules", _rules)):
        one = commands.add_parser(name, help=f"list the {name}", description=f"List the {name}, or describe one.")
        one.add_argument("name", nargs="?", help="describe this one alone")
        _add_common(one, run)
    return parser


def _add_common(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--json", action="store_true", help="print data instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)


def _add_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", default="attnlrp", help="which rules (default: %(default)s; see the command presets)"
    )
    parser.add_argument(
        "--preset-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the preset: a number, true, false, a word, or 0.1,0.2,0.3 for channels; may be repeated",
    )
    parser.add_argument(
        "--merge-batch-norm", action="store_true", help="take each batch norm and the layer before it for one layer"
    )


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo_output"),
        metavar="DIR",
        help="folder for the picture (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="train for a moment only: a smoke test, not for good pictures"
    )
    parser.add_argument("--retrain", action="store_true", help="train even if the weights are in the cache")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder for the weights (default: lxt_compose in the user's cache)"
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_demo)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder (weights are not needed), or module:factory")
    _add_rules(parser)
    parser.add_argument(
        "--input-shape",
        action="append",
        type=_shape,
        default=[],
        metavar="SHAPE",
        help="shape of the input, such as 1,3,32,32 or 1x3x32x32, for module:factory; once for each positional "
        "argument of the model, in their order",
    )
    parser.add_argument("--every-row", action="store_true", help="a line for each module and operation")
    parser.add_argument("--ledger", action="store_true", help="print also where the relevance went")
    _add_common(parser, _report)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder with its tokenizer or image processor")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="the text")
    source.add_argument("--image", type=Path, metavar="FILE", help="the image")
    parser.add_argument(
        "--target",
        help="a label or the number of a class; for a language model a token as text, or its number as '#17' "
        "(default: what the model answers)",
    )
    parser.add_argument(
        "--against",
        help="explain the difference to this label or token, given in the same way, or to the mean of the 'others'",
    )
    _add_rules(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write a page (.html), a picture (.png, .pdf, .svg), or .pt"
    )
    parser.add_argument("--words", action="store_true", help="add up the pieces of each word")
    parser.add_argument("--ledger", action="store_true", help="tell also where the relevance went")
    parser.add_argument("--dtype", default="float32", choices=_DTYPES, help="of the model (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the model runs (default: %(default)s)")
    _add_common(parser, _explain)
