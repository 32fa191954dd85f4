"""The arguments of the commands of `lxt-compose`."""

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any

from ..similarity import MEASURES, POOLINGS
from . import answer_arguments, concept_arguments
from .heads import FORMS

_EXIT_CODES = "exit codes: 0 all is well, 1 the report has uncovered operations, 2 an error, 130 interrupted"
_DTYPES = ("float32", "float64", "bfloat16", "float16")


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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of arguments; ``options.command`` is the name of the command."""
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
    _add_similarity(commands)
    _add_run(commands.add_parser(
        "run",
        help="explain a file of texts or a folder of images",
        description="Explain each text of a file or image of a folder, and write Parquet files, which pandas reads in "
        "one line. Called again, it goes on where it was stopped. Under torchrun, processes share the samples.",
        epilog=_EXIT_CODES,
    ))  # fmt: skip
    _add_concepts(commands)
    for name in ("presets", "rules"):
        one = commands.add_parser(name, help=f"list the {name}", description=f"List the {name}, or describe one.")
        one.add_argument("name", nargs="?", help="describe this one alone")
        _add_common(one)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print data instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


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
    _add_common(parser)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder with its tokenizer or image processor")
    answer_arguments.add(parser)
    parser.add_argument("--at", metavar="PLACE", help=f"which place of many the model answers at: {FORMS}")
    _add_target(parser)
    _add_rules(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write a page (.html), a picture (.png, .pdf, .svg), or .pt"
    )
    parser.add_argument("--words", action="store_true", help="add up the pieces of each word")
    parser.add_argument("--ledger", action="store_true", help="tell also where the relevance went")
    _add_place(parser)
    _add_common(parser)


def _add_similarity(commands: Any) -> None:
    parser = commands.add_parser(
        "similarity",
        help="explain what makes two texts or two images alike",
        description="Explain the similarity of two inputs to a local transformers checkpoint that embeds them: what in "
        "each makes them alike, and with --pairs which goes together with which.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder with its tokenizer or image processor")
    parser.add_argument("--first", metavar="TEXT", help="a text")
    parser.add_argument("--second", metavar="TEXT", help="the text that it is compared with")
    parser.add_argument(
        "--file", metavar="FILE", help="two texts with a tab between them on each line; - is standard input"
    )
    parser.add_argument("--images", type=Path, nargs=2, metavar="FILE", help="two images")
    parser.add_argument("--pairs", action="store_true", help="explain which place of the first goes with which")
    parser.add_argument(
        "--pooling", default="mean", choices=tuple(POOLINGS),
        help="how the output becomes an embedding (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--measure", default="cosine", choices=MEASURES, help="(default: %(default)s)")
    _add_rules(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a page (.html) or a figure (.png, .pdf, .svg)")
    parser.add_argument("--words", action="store_true", help="add up the pieces of each word")
    parser.add_argument("--ledger", action="store_true", help="tell also where the relevance went")
    _add_place(parser)
    _add_common(parser)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        help="a label or the number of a class; for a language model a token as text, or its number as '#17' "
        "(default: what the model answers)",
    )
    parser.add_argument(
        "--against",
        help="explain the difference to this label or token, given in the same way, or to the mean of the 'others'",
    )


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", default="float32", choices=_DTYPES, help="of the model (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the model runs (default: %(default)s)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder with its tokenizer or image processor")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--texts", type=Path, metavar="FILE", help="a text on each line, or .jsonl")
    source.add_argument("--images", type=Path, metavar="DIR", help="a folder of images")
    parser.add_argument("--field", default="text", help="the entry of .jsonl that is the text (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the results")
    _add_target(parser)
    _add_rules(parser)
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="samples at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--keep",
        default="scores",
        choices=("scores", "relevance"),
        help="one number for each token or pixel, or all of the relevance (default: %(default)s)",
    )
    _add_place(parser)
    _add_common(parser)


def _add_concepts(commands: Any) -> None:
    parser = commands.add_parser(
        "concepts",
        help="find the samples of a file or folder where units of a model matter most",
        description=concept_arguments.DESCRIPTION,
        epilog=_EXIT_CODES,
    )
    concept_arguments.add(parser)
    _add_target(parser)
    _add_rules(parser)
    _add_place(parser)
    _add_common(parser)
