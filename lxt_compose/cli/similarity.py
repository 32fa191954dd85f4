"""What makes two texts or two images alike to a checkpoint that embeds them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..heatmap.picture import number, save_figure, visible
from ..similarity import SimilarityAttribution, attribute_similarity
from ..similarity.exports import page_of, plain
from .answer import Answer, Say
from .composite_options import OneOptions
from .explain import moved
from .heads import given_to
from .model_files import load_model

_PAGES, _FIGURES = (".html", ".htm"), (".png", ".pdf", ".svg")
_STRONGEST = 8


@dataclass(frozen=True, kw_only=True)
class SimilarityOptions(OneOptions):
    """What is compared, and how.

    ``texts`` are pairs of texts, ``images`` two files. ``pairs`` explains which place goes with which; ``pooling`` and
    ``measure`` are those of :func:`attribute_similarity`. ``lines`` says that the pairs came from a file.
    """

    texts: tuple[tuple[str, str], ...] = ()
    images: tuple[Path, Path] | None = None
    pairs: bool = False
    pooling: str = "mean"
    measure: str = "cosine"
    lines: bool = False


def pairs_of(first: str | None, second: str | None, file: str | None) -> tuple[tuple[str, str], ...]:
    """Return pairs of texts: the two that are given, or those of a file, a tab between them on each line.

    Raises:
        ValueError: there is no pair, the file cannot be read, or a line holds no two texts.
    """
    if file is None:
        if (first is None) != (second is None):
            raise ValueError("give both --first and --second")
        return () if first is None or second is None else ((first, second),)
    if first is not None or second is not None:
        raise ValueError("--file does not go with --first and --second")
    try:
        whole = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the pairs {file} cannot be read: {error}") from error
    found = list[tuple[str, str]]()
    for count, line in enumerate(whole.splitlines(), 1):
        texts = line.split("\t")
        if line.strip() and (len(texts) != 2 or not all(map(str.strip, texts))):
            raise ValueError(f"line {count} of {file} must hold two texts with a tab between them")
        if line.strip():
            found.append((texts[0], texts[1]))
    if not found:
        raise ValueError(f"{file} holds no pairs")
    return tuple(found)


def explain_similarity(reference: str, options: SimilarityOptions, *, say: Say) -> Answer:
    """Explain what makes two texts or images alike, for each pair.

    Args:
        reference: the checkpoint's folder.
        options: what and how.
        say: takes lines about the progress.

    Raises:
        CheckpointError: the model, its tokenizer or its image processor cannot be loaded.
        TypeError: the model makes no such embedding.
        ValueError: an option makes no sense.
    """
    if bool(options.texts) == (options.images is not None):
        raise ValueError("give --first and --second, --file, or --images")
    _check_out(options)
    composite = options.rules.composite()
    say(f"loading {reference}")
    loaded = load_model(reference, dtype=options.dtype)
    model = moved(loaded.model, options.device)
    say(f"explaining {loaded.name} with {options.rules}")
    found = []
    for pair in options.texts or [options.images]:
        assert pair is not None
        given = [
            given_to(loaded, one, None, None) if isinstance(one, str) else given_to(loaded, None, None, one)
            for one in pair
        ]
        first, second = (inputs for inputs, _ in given)
        tokenizer = given[0][1] if options.texts else None
        found.append(
            attribute_similarity(
                model, first, second, tokenizer=tokenizer, pooling=options.pooling, measure=options.measure,
                pairs=options.pairs, composite=composite, ledger=options.ledger,
            )
        )  # fmt: skip
    if options.out is not None:
        _write(found, options, loaded.name)
        say(f"written: {options.out}")
    return _answer(found, options, loaded.name)


def _check_out(options: SimilarityOptions) -> None:
    """Raise unless the file can be written.

    Raises:
        ValueError: nothing of such a kind is written, or its folder does not exist.
    """
    out = options.out
    if out is None:
        return
    if out.suffix.lower() not in (*_PAGES, *_FIGURES) or (len(options.texts) > 1 and out.suffix.lower() in _FIGURES):
        several = " of several pairs" * (len(options.texts) > 1)
        endings = ".html" if several else ".html, .png, .pdf or .svg"
        raise ValueError(f"--out{several} must end in {endings}, got {out.name!r}")
    if not out.parent.is_dir():
        raise ValueError(f"the folder of --out does not exist: {out.parent}")


def _write(found: list[SimilarityAttribution], options: SimilarityOptions, name: str) -> None:
    assert options.out is not None
    if options.out.suffix.lower() in _PAGES:
        options.out.write_text(page_of(found, title=f"What makes two inputs alike to {name}"), encoding="utf-8")
    elif options.pairs:
        save_figure(found[0].plot().figure, options.out, dpi=150)
    else:
        found[0].heatmap().save(options.out)


def _answer(found: list[SimilarityAttribution], options: SimilarityOptions, name: str) -> Answer:
    out = {"out": None if options.out is None else str(options.out)}
    head = {"model": name, "preset": str(options.rules), "measure": options.measure, "pooling": options.pooling}
    data: list[dict[str, Any]] = [{**head, **plain(one), **out} for one in found]
    title = f"{name}, preset {options.rules}: what makes both alike, by the {options.measure}"
    return Answer(
        f"{title}\n\n" + "\n\n\n".join(_text_of(one, options) for one in found),
        data if options.lines else data[0],
        all(one.report.complete for one in found),
        lines=options.lines,
    )


def _text_of(found: SimilarityAttribution, options: SimilarityOptions) -> str:
    """Return the similarity, the places of both, the account, and the strongest pairs."""
    sums = {"the first": float(found.scores[0].sum()), "the second": float(found.scores[1].sum())}
    account = [[name, number(value)] for name, value in {**sums, "neither: biases and the like": found.rest}.items()]
    parts = [f"similarity {found.similarity:.4g}"]
    if options.images is None:
        parts.append(str(found.heatmap(words=options.words)))
    parts.append(tabulate(account, disable_numparse=True, tablefmt="plain"))
    if found.pairs is not None:
        rows = [[visible(a), visible(b), number(value)] for a, b, value in found.strongest(_STRONGEST)]
        parts.append(tabulate(rows, ["of the first", "of the second", "together"], disable_numparse=True))
    if found.ledger is not None:
        parts.append(found.ledger.to_string(width=options.width))
    return "\n\n".join(parts)
