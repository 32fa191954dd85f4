"""All answers of heads that answer at many places: detectors, taggers, speech, segmentation, questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.heads import entries, is_depth, is_masks, is_span
from ..attribution.inputs import Inputs
from ..attribution.logits import logits_of
from ..targets.answers import spans_of
from ..targets.speech import Emission, emissions
from .forced import Wanted

_SMALL = 0.005
"""The least share of an image for a segment that is an answer."""


@dataclass(frozen=True)
class Answers:
    """The answers of a head: the explained numbers, one row each, and their names.

    ``classes`` [rows] are the numbers of their classes, ``names`` gives names of classes, ``called`` other names of
    rows, ``boxes`` [rows, 4] the boxes of detected things. ``letters`` says that the names are pieces of one text.
    """

    wanted: Wanted
    classes: tuple[int, ...]
    names: Callable[[int], str]
    boxes: Tensor | None = None
    letters: bool = False
    called: tuple[str, ...] = ()

    @property
    def rows(self) -> list[str]:
        """The name of each row."""
        return list(self.called) or [self.names(number) for number in self.classes]


def answers_of(model: nn.Module, output: Any, given: Inputs, tokenizer: Any, threshold: float) -> Answers:
    """Return the answers of a head to one sample.

    Args:
        model: the model.
        output: of the model.
        given: its inputs.
        tokenizer: names the symbols of speech; may be None.
        threshold: how likely a detected thing must be.

    Raises:
        TypeError: it has one answer for each sample, which :func:`attribute` explains.
        ValueError: there are no answers.
    """
    if is_span(output):
        return _span(entries(output))
    names = _labels(model)
    if is_masks(output):
        return _masks(model, entries(output), names, threshold)
    logits = logits_of(output)
    if "pred_boxes" in entries(output):
        return _detections(model, logits[0], _corners(entries(output)["pred_boxes"][0]), names, threshold)
    if logits.dim() == 4:
        return _segments(logits[0], names)
    ids = given.ids.get("input_ids")
    if logits.dim() == 3 and ids is not None and ids.shape[1] == logits.shape[1]:
        classes = logits[0].argmax(-1)
        if tokenizer is not None and logits.shape[2] != len(getattr(model.config, "id2label", None) or {}):
            names = lambda number: str(tokenizer.convert_ids_to_tokens([number])[0])  # noqa: E731 - a vocabulary
        return Answers(_each(torch.arange(len(classes)), classes), tuple(classes.tolist()), names)
    if logits.dim() == 3 and ids is None and not is_depth(output):
        return _emitted(model, logits[0], names, tokenizer)
    raise TypeError(
        f"the output of {type(model).__name__} has shape {list(logits.shape)}: "
        + (
            "a number for each pixel, too many to explain all; explain some with attribute() and targets.pixel()"
            if is_depth(output)
            else "it does not answer at many places; explain it with attribute(), or with attribute_generation() if it "
            "writes texts"
        )
    )


def _labels(model: nn.Module) -> Callable[[int], str]:
    known = getattr(getattr(model, "config", None), "id2label", None) or {}
    return lambda number: str(known.get(number, number))


def _each(places: Tensor, classes: Tensor) -> Wanted:
    return Wanted(places, classes, torch.eye(len(places)))


def _detections(
    model: nn.Module, logits: Tensor, boxes: Tensor, names: Callable[[int], str], threshold: float
) -> Answers:
    """Return the things that are more likely than the threshold, the most likely first.

    By a softmax if there is a class more than the model has labels, "no object", else by a sigmoid. ``boxes`` are the
    left, top, right and bottom of what each query stands for.
    """
    labels = len(getattr(model.config, "id2label", None) or {}) or logits.shape[1]
    with_none = logits.shape[1] == labels + 1
    shares = logits.softmax(-1)[:, :-1] if with_none else logits.sigmoid()
    best, classes = shares.max(-1)
    order = best.argsort(descending=True)
    kept = order[best[order] > threshold]
    if not len(kept):
        raise ValueError(
            f"nothing is detected: the most likely thing, {names(int(classes[order[0]]))}, has "
            f"{float(best.max()):.3g}, and threshold= is {threshold}"
        )
    found = classes[kept].cpu()
    called = (lambda number: "no object" if number == labels else names(number)) if with_none else names
    return Answers(_each(kept.cpu(), found), tuple(found.tolist()), called, boxes[kept].double().cpu())


def _corners(boxes: Tensor) -> Tensor:
    """Return left, top, right and bottom of boxes that are given by center and size."""
    x, y, width, height = boxes.unbind(1)
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)


def _masks(model: nn.Module, output: dict[str, Tensor], names: Callable[[int], str], threshold: float) -> Answers:
    """Return the things with a class and a mask, with the box around the mask; the class is explained."""
    found = _detections(
        model, output["class_queries_logits"][0], _around(output["masks_queries_logits"][0] > 0), names, threshold
    )
    places, classes = found.wanted.positions, found.wanted.tokens

    def pick(output: Any) -> tuple[Tensor, Tensor]:
        logits = entries(output)["class_queries_logits"][0]
        at = places.to(logits.device)
        return logits[at, classes.to(logits.device)], logits[at]

    return replace(found, wanted=replace(found.wanted, pick=pick))


def _around(masks: Tensor) -> Tensor:
    """Return the boxes around masks [queries, height, width], as shares of the image; all of it around an empty one."""
    sides = []
    for along in (masks.any(1), masks.any(2)):
        along = torch.where(along.any(1, keepdim=True), along, True).double()
        count = along.shape[1]
        sides.append((along.argmax(1) / count, 1 - along.flip(1).argmax(1) / count))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1)


def _emitted(model: nn.Module, logits: Tensor, names: Callable[[int], str], tokenizer: Any) -> Answers:
    """Return the emissions of speech recognition, or runs of frames with one label; rows are sums over frames."""
    ctc = "CTC" in type(model).__name__
    blank = getattr(model.config, "pad_token_id", None) if ctc else -1
    if ctc and not isinstance(blank, int):
        raise ValueError(f"the configuration of {type(model).__name__} has no pad_token_id, which is the blank of CTC")
    found = emissions(logits, -1 if blank is None else blank)
    if not found:
        raise ValueError("nothing is emitted: the blank is the arg-max of each frame")
    places = torch.tensor([place for one in found for place in range(one.first, one.last + 1)])
    classes = torch.tensor([one.symbol for one in found for _ in range(one.first, one.last + 1)])
    weights = torch.stack([_inside(places, one) for one in found])
    letters = ctc and tokenizer is not None
    if letters:
        names = lambda number: _letter(tokenizer, number)  # noqa: E731
    return Answers(Wanted(places, classes, weights), tuple(one.symbol for one in found), names, None, letters)


def _inside(places: Tensor, one: Emission) -> Tensor:
    return ((places >= one.first) & (places <= one.last)).float()


def _letter(tokenizer: Any, number: int) -> str:
    """Return a symbol, a space as SentencePiece marks it."""
    name = str(tokenizer.convert_ids_to_tokens([number])[0])
    return "\u2581" if name == getattr(tokenizer, "word_delimiter_token", "|") else name


def _segments(logits: Tensor, names: Callable[[int], str]) -> Answers:
    """Return the labels of at least 0.5 % of the pixels, the largest first: the mean logit over the pixels of each."""
    path = logits.argmax(0)
    labels, counts = path.unique(return_counts=True)
    order = counts.argsort(descending=True)
    kept = labels[order[counts[order] >= _SMALL * path.numel()]]
    where = torch.stack([path == label for label in kept]).flatten(1)

    def pick(output: Any) -> tuple[Tensor, Tensor]:
        values = logits_of(output)[0].flatten(1)
        shares = where.to(values) / where.sum(1, keepdim=True)
        means = shares @ values.T
        return means[torch.arange(len(kept), device=values.device), kept], means

    classes = tuple(kept.tolist())
    rows = torch.arange(len(kept))
    return Answers(Wanted(rows, kept.cpu(), torch.eye(len(kept)), pick=pick), classes, names)


def _span(known: dict[str, Tensor]) -> Answers:
    """Return the first and the last token of the best span."""
    first, last = (int(x) for x in spans_of(known["start_logits"], known["end_logits"]))

    def pick(output: Any) -> tuple[Tensor, Tensor]:
        logits = torch.cat([entries(output)["start_logits"][:1], entries(output)["end_logits"][:1]])
        return torch.stack([logits[0, first], logits[1, last]]), logits

    wanted = Wanted(torch.arange(2), torch.tensor([first, last]), torch.eye(2), pick=pick)
    called = (f"start at token {first}", f"end at token {last}")
    return Answers(wanted, (first, last), lambda number: f"token {number}", called=called)
