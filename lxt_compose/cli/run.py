"""Explain a file of texts or a folder of images, and write the results to a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..datasets import attribute_dataset
from .answer import Answer, Say
from .composite_options import CheckpointOptions
from .explain import moved
from .model_files import load_model
from .sample_files import Images, Texts
from .targets import wanted


@dataclass(frozen=True, kw_only=True)
class RunOptions(CheckpointOptions):
    """The options of `run`.

    ``texts`` is a file with a text on each line, or ``.jsonl`` with an object on each line, whose entry ``field`` is
    the text; ``images`` is a folder. ``target`` and ``against`` are as for one text or image.
    """

    out: Path
    texts: Path | None = None
    field: str = "text"
    images: Path | None = None
    target: str | None = None
    against: str | None = None
    batch_size: int = 8
    keep: str = "scores"
    progress: bool = True


def run(reference: str, options: RunOptions, *, say: Say) -> Answer:
    """Explain a checkpoint's answer to each text or image; continues an earlier run.

    Args:
        reference: the checkpoint's folder.
        options: what and how.
        say: takes lines about the progress.

    Raises:
        CheckpointError: the model, its tokenizer or its image processor cannot be loaded, or is not for this.
        ValueError: the file or the folder has no texts or images, or an option makes no sense for this model.
    """
    if (options.texts is None) == (options.images is None):
        raise ValueError("give either --texts or --images")
    composite = options.rules.composite()
    say(f"loading {reference}")
    loaded = load_model(reference, dtype=options.dtype)
    data: Any = Images(loaded, options.images) if options.images else Texts(loaded, options.texts, options.field)
    aim = wanted(options.target, options.against, data.names)
    say(f"explaining {len(data)} samples with {options.rules}, into {options.out}")
    done = attribute_dataset(
        moved(loaded.model, options.device),
        data,
        options.out,
        target=aim.target,
        composite=composite,
        keep=options.keep,
        batch_size=options.batch_size,
        collate=data.collate,
        progress=options.progress,
    )
    return Answer(repr(done)[1:-1], done.manifest, done.complete)
