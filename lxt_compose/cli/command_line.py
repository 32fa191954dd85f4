"""The command line, `lxt-compose`: demo, report, explain, similarity, run, concepts, presets, rules.

It is the only place that prints. Answers go to stdout, progress and errors to stderr.

Exit codes: 0 all is well; 1 the report has uncovered operations;
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

from .. import command_start
from ..demo import run_demo
from ..errors import CompositeError, UncoveredError
from . import answer_arguments, concept_arguments
from .arguments import build_parser
from .commands import (
    Answer,
    CompositeOptions,
    ExplainOptions,
    RunOptions,
    SimilarityOptions,
    collect_concepts,
    explain,
    explain_answer,
    explain_similarity,
    list_presets,
    list_rules,
    pairs_of,
    report,
    run,
)

FINE = 0
INCOMPLETE = 1
FAILED = 2
INTERRUPTED = 130
_FOR_USERS = (CompositeError, RuntimeError, ValueError, TypeError, OSError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 0, 1 for an incomplete report, 2 for an error, 130 when interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        command_start.begin()
        code = _COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("lxt-compose: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except Exception as error:  # the user gets one line, and the traceback on request
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
    with redirect_stdout(sys.stderr):  # prints by the model's own code are no part of the answer
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

    dtype = getattr(torch, options.dtype)
    if answer_arguments.is_asked(options):
        wanted = answer_arguments.options_of(options, rules=_rules_wanted(options), dtype=dtype, width=_width())
        with redirect_stdout(sys.stderr):
            answer = explain_answer(options.model, wanted, say=_say(options))
        return _explained(answer, options)
    wishes = ExplainOptions(
        text=options.text,
        texts=answer_arguments.texts_of(options),
        image=options.image,
        at=options.at,
        text_pair=options.text_pair,
        target=options.target,
        against=options.against,
        rules=_rules_wanted(options),
        dtype=dtype,
        device=options.device,
        ledger=options.ledger,
        words=options.words,
        out=options.out,
        color=sys.stdout.isatty() and not os.environ.get("NO_COLOR"),
        width=_width(),
    )
    with redirect_stdout(sys.stderr):
        answer = explain(options.model, wishes, say=_say(options))
    return _explained(answer, options)


def _explained(answer: Answer, options: argparse.Namespace) -> int:
    _print(answer, options)
    if not answer.complete:
        _say(options)(f"warning: some operations have no rule: see lxt-compose report {options.model}")
    return FINE


def _similarity(options: argparse.Namespace) -> int:
    import torch

    wishes = SimilarityOptions(
        texts=pairs_of(options.first, options.second, options.file),
        images=None if options.images is None else (options.images[0], options.images[1]),
        pairs=options.pairs,
        pooling=options.pooling,
        measure=options.measure,
        lines=options.file is not None,
        rules=_rules_wanted(options),
        dtype=getattr(torch, options.dtype),
        device=options.device,
        ledger=options.ledger,
        words=options.words,
        out=options.out,
        width=_width(),
    )
    with redirect_stdout(sys.stderr):
        answer = explain_similarity(options.model, wishes, say=_say(options))
    return _explained(answer, options)


def _run(options: argparse.Namespace) -> int:
    import torch

    wishes = RunOptions(
        out=options.out,
        texts=options.texts,
        field=options.field,
        images=options.images,
        target=options.target,
        against=options.against,
        rules=_rules_wanted(options),
        batch_size=options.batch_size,
        keep=options.keep,
        dtype=getattr(torch, options.dtype),
        device=options.device,
        progress=not options.quiet,
    )
    with redirect_stdout(sys.stderr):
        answer = run(options.model, wishes, say=_say(options))
    _print(answer, options)
    return FINE if answer.complete else INCOMPLETE


def _concepts(options: argparse.Namespace) -> int:
    import torch

    dtype = getattr(torch, options.dtype)
    wishes = concept_arguments.options_of(options, rules=_rules_wanted(options), dtype=dtype)
    with redirect_stdout(sys.stderr):
        answer = collect_concepts(options.model, wishes, say=_say(options))
    _print(answer, options)
    return FINE if answer.complete else INCOMPLETE


def _presets(options: argparse.Namespace) -> int:
    _print(list_presets(options.name, width=_width()), options)
    return FINE


def _rules(options: argparse.Namespace) -> int:
    _print(list_rules(options.name, width=_width()), options)
    return FINE


def _print(answer: Answer, options: argparse.Namespace) -> None:
    if options.json and answer.lines:
        for one in answer.data:
            print(json.dumps(one, ensure_ascii=False))
        return
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


_COMMANDS = {
    "demo": _demo,
    "report": _report,
    "explain": _explain,
    "similarity": _similarity,
    "run": _run,
    "concepts": _concepts,
    "presets": _presets,
    "rules": _rules,
}
