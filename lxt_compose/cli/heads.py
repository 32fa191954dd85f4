"""Heads that answer at many places: what a checkpoint is given, all of its answers, and one place of them by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from .. import targets
from ..composite import Composite
from ..generation import Answer, GenerationAttribution, attribute_outputs
from ..targets.places import Target
from .images import opened
from .model_files import Loaded, load_beside

_LABELED: dict[str, tuple[Callable[..., Target], int]] = {
    "token": (targets.token, 1),
    "frame": (targets.frame, 1),
    "query": (targets.query, 1),
    "pixel": (targets.pixel, 2),
}
_OTHERS: dict[str, tuple[Callable[..., Target], int]] = {
    "mask": (targets.mask, 1),
    "region": (targets.region, 1),
    "answer": (targets.answer, 2),
    "box": (targets.box, 2),
}
FORMS = "'token 3', 'frame 3', 'query 3', 'pixel 5 7', 'mask 3', 'region 2', 'answer 4 6', 'box 3 width'"


def target_at(place: str, label: int | None) -> Target:
    """Return the target that a place stands for, such as ``"token 3"`` or ``"pixel 5 7"``.

    Args:
        place: its kind and its numbers.
        label: the class that is explained there; None is what the model answers.

    Raises:
        ValueError: there are no such places, they have another number of numbers, or no labels.
    """
    kind, *words = re.split(r"[\s,]+", place.strip())
    make, count = {**_LABELED, **_OTHERS}.get(kind, (None, 0))
    good = len(words) == count and all(
        re.fullmatch(r"-?\d+", word) or (kind == "box" and number) for number, word in enumerate(words)
    )
    if make is None or not good:
        raise ValueError(f"--at is one of {FORMS}, got {place!r}")
    if label is not None and kind in _OTHERS:
        raise ValueError(f"--target does not go with --at {place!r}, which has no label of its own")
    numbers = [word if word in targets.SIDES else int(word) if re.fullmatch(r"-?\d+", word) else word for word in words]
    return make(*numbers, *([label] if label is not None else []))


def given_to(loaded: Loaded, text: str | None, pair: str | None, image: Path | None) -> tuple[dict[str, Any], Any]:
    """Return the inputs for a text, a pair of texts, an image, or both, and the processor that made them.

    Raises:
        CheckpointError: the checkpoint has no processor for them.
        ValueError: the image cannot be read, or the text has no tokens.
    """
    if image is None:
        processor = load_beside(loaded, "AutoTokenizer")
        inputs = dict(processor(text, *([pair] if pair is not None else []), return_tensors="pt"))
        if not inputs["input_ids"].numel():
            raise ValueError("the text has no tokens")
    elif text is None:
        processor = load_beside(loaded, "AutoImageProcessor")
        inputs = {"pixel_values": processor(opened(image), return_tensors="pt")["pixel_values"]}
    else:
        processor = load_beside(loaded, "AutoProcessor")
        inputs = dict(processor(text=[text], images=opened(image), return_tensors="pt"))
    dtype = next(p.dtype for p in loaded.model.parameters() if p.is_floating_point())
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}, processor


def all_outputs(
    loaded: Loaded, model: nn.Module, composite: Composite, asked: list[tuple[str | None, str | None]], options: Any
) -> GenerationAttribution:
    """Return each answer of a head for each of some texts, or for an image.

    Args:
        loaded: the checkpoint.
        model: its model, where it is to run.
        composite: the rules.
        asked: the texts, each with the other one of its pair.
        options: of the command; see :class:`~.explain_answer.AnswerOptions`.
    """
    found = list[Answer]()
    for text, pair in asked:
        inputs, processor = given_to(loaded, text, pair, options.image)
        moved = {name: x.to(options.device) for name, x in inputs.items()}
        found += attribute_outputs(
            model, moved, processor=processor, threshold=options.threshold, composite=composite, ledger=options.ledger
        )
    return GenerationAttribution(tuple(found))
