"""The question and the answer of `lxt-compose explain`, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..attribution import Attribution
from .composite_options import OneOptions
from .model_files import Loaded
from .targets import Labels, Vocabulary


@dataclass(frozen=True)
class Task:
    """The question: a checkpoint, the inputs, the names of its outputs, and for text the tokens."""

    loaded: Loaded
    inputs: dict[str, Any]
    names: Labels | Vocabulary
    source: str
    tokens: list[str] | None = None
    scheme: str | None = None
    picture: Path | None = None


@dataclass(frozen=True)
class Explained:
    """The answer: the attribution, its target, and the model's other most likely answers."""

    task: Task
    found: Attribution
    preset: str
    title: str
    top: list[tuple[str, float, float]]
    """Name, logit and probability of the first few."""
    is_relevance: bool = True
    """Whether the scores are in the unit of the output; a composite with ``picture="slot"`` shows ``x.grad``."""


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(OneOptions):
    """The options of `explain`.

    ``text`` is the input of a causal language model or a classifier of texts; ``texts`` are several of them, each
    explained; ``image`` is a file for a classifier of images. ``target`` is a label, a token or a number, None the
    model's answer; ``against`` the same, for the difference of the two ("others" is the mean of all others). ``at`` is
    a place of a head that answers at many, such as "token 3", ``text_pair`` the other text of a pair. ``out`` is a
    .html for a page, .png, .pdf or .svg for the heatmap, .pt for the attribution. ``color`` allows escape sequences in
    the text printed.
    """

    text: str | None = None
    texts: tuple[str, ...] = ()
    image: Path | None = None
    target: str | None = None
    against: str | None = None
    at: str | None = None
    text_pair: str | None = None
    color: bool = False
