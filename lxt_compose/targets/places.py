"""Targets of heads that answer at each token, frame, query or pixel: one number of one place."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Target = Callable[[Any], Tensor]
SIDES = ("center_x", "center_y", "width", "height")
"""The four numbers of a box, as shares of the image: those of DETR and what followed it."""
_LOGITS = (
    "logits",
    "prediction_logits",
    "class_queries_logits",
    "masks_queries_logits",
    "predicted_depth",
    "reconstruction",
)


def token(place: int, label: int | None = None) -> Target:
    """Return the target for one token: the logit ``y[n, place, label]`` of a label there.

    For token classification, masked language models, and heads with one number for each token (``y[n, place]``).

    Args:
        place: the number of the token; negative ones count from the end, padding included.
        label: the number of the label or token; None is the model's answer there (the arg-max).

    Raises:
        TypeError: an argument that should be a number is none.
    """
    return _at("token", place, label)


def frame(place: int, label: int | None = None) -> Target:
    """Return the target for one frame of a head for speech, as :func:`token` for a token.

    :func:`seconds_of` tells the time of a frame.

    Raises:
        TypeError: an argument that should be a number is none.
    """
    return _at("frame", place, label)


def query(place: int, label: int | None = None) -> Target:
    """Return the target for one query of a detector: the logit of a class there, as :func:`token` for a token.

    Detectors such as DETR have a further last class, "no object", which may be the arg-max.

    Raises:
        TypeError: an argument that should be a number is none.
    """
    return _at("query", place, label)


def box(place: int, side: str) -> Target:
    """Return the target for a number of the box of one query, ``pred_boxes[n, place, side]``, a share of the image.

    Args:
        place: the number of the query.
        side: one of ``SIDES``: "center_x", "center_y", "width", "height".

    Raises:
        TypeError: the place is no number.
        ValueError: there is no such side.
    """
    number = _whole(place, "place")
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(map(repr, SIDES))}, got {side!r}")

    def target(output: Any) -> Tensor:
        boxes = named(output, ("pred_boxes",), "box", dims=(3,))
        return boxes[:, inside(number, boxes.shape[1], "query"), SIDES.index(side)]

    return called(target, f"{side} of query {number}")


def mask(place: int) -> Target:
    """Return the target for the mask of one query of MaskFormer and the like: the mean logit of its own pixels.

    Its own pixels are those with a positive logit; if there are none, all.

    Raises:
        TypeError: the place is no number.
    """
    number = _whole(place, "place")

    def target(output: Any) -> Tensor:
        masks = named(output, ("masks_queries_logits", "pred_masks"), "mask", dims=(4, 5))
        masks = masks.flatten(1, -3) if masks.dim() == 5 else masks
        own = masks[:, inside(number, masks.shape[1], "query")].flatten(1)
        return _mean(own, own.detach() > 0)

    return called(target, f"mask of query {number}")


def pixel(row: int, column: int, label: int | None = None) -> Target:
    """Return the target for one pixel of segmentation: the logit ``y[n, label, row, column]``.

    Rows and columns are those of the output, which may be smaller than the image. For depth and
    the like, which have no classes, it is the number there, ``y[n, row, column]``.

    Args:
        row: of the output.
        column: of the output.
        label: the class; None is the arg-max there.

    Raises:
        TypeError: an argument that should be a number is none.
    """
    at = _whole(row, "row"), _whole(column, "column")
    number = None if label is None else _whole(label, "label")

    def target(output: Any) -> Tensor:
        logits = named(output, _LOGITS, "pixel", dims=(3, 4))
        height, width = logits.shape[-2:]
        there = logits[..., inside(at[0], height, "row"), inside(at[1], width, "column")]
        return _labeled(there, number) if logits.dim() == 4 else _unlabeled(there, number, "pixel")

    return called(target, f"pixel {at[0]}, {at[1]}" + _of(number))


def region(label: int, where: Any = None) -> Target:
    """Return the target for a region of segmentation: the mean of a class's logit over its pixels.

    Args:
        label: the class.
        where: true where the region is, [rows, columns] of the output or [n, rows, columns]; None is where the class is
            the arg-max, and all of the image if it is so nowhere.

    Raises:
        TypeError: the label is no number.
        ValueError: the region has another size than the output, or no pixels.
    """
    number = _whole(label, "label")
    chosen = None if where is None else torch.as_tensor(where).bool()
    if chosen is not None and not bool(chosen.flatten(-2).any(-1).all()):
        raise ValueError("the region has no pixels")

    def target(output: Any) -> Tensor:
        logits = named(output, _LOGITS, "region", dims=(4,))
        own = logits[:, inside(number, logits.shape[1], "label")]
        if chosen is None:
            return _mean(own.flatten(1), (logits.detach().argmax(1) == number).flatten(1))
        size, whole = list(chosen.shape[-2:]), list(own.shape[-2:])
        if size != whole:
            raise ValueError(f"the region has the size {size}, but the output {whole}")
        return _mean(own.flatten(1), chosen.to(own.device).expand_as(own).flatten(1))

    return called(target, f"region of label {number}")


def each(target: Callable[..., Target], places: Iterable[int], *more: Any) -> dict[str, Target]:
    """Return a target for each of several places, by names: ``each(token, range(7))`` for the first seven tokens.

    Args:
        target: :func:`token`, :func:`frame`, :func:`query`, ...
        places: their numbers.
        more: further arguments of the target, such as a label.

    Raises:
        ValueError: there are no places.
    """
    found = [target(place, *more) for place in places]
    if not found:
        raise ValueError("each() was given no places")
    return {one.__name__: one for one in found}


# ---- what they have in common ----------------------------------------------------------------------------------------


def _at(kind: str, place: int, label: int | None) -> Target:
    number, wanted = _whole(place, "place"), None if label is None else _whole(label, "label")

    def target(output: Any) -> Tensor:
        logits = named(output, _LOGITS, kind, dims=(2, 3))
        there = logits[:, inside(number, logits.shape[1], kind)]
        return _labeled(there, wanted) if logits.dim() == 3 else _unlabeled(there, wanted, kind)

    return called(target, f"{kind} {number}{_of(wanted)}")


def _of(label: int | None) -> str:
    return "" if label is None else f", label {label}"


def _labeled(logits: Tensor, label: int | None) -> Tensor:
    """Return the logit of a label, or of the arg-max, from [n, labels]."""
    if label is not None:
        return logits[:, inside(label, logits.shape[1], "label")]
    return logits.gather(1, logits.detach().argmax(1)[:, None])[:, 0]


def _unlabeled(numbers: Tensor, label: int | None, what: str) -> Tensor:
    if label is not None:
        raise ValueError(
            f"targets.{what}() was given the label {label}, but the model has one number for each place, no labels"
        )
    return numbers


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of those chosen, sample by sample; of all if none are."""
    weights = torch.where(chosen.any(1, keepdim=True), chosen, True).to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1)


def called(target: Target, name: str) -> Target:
    """Return the target under a name, for titles of rows."""
    target.__name__ = target.__qualname__ = name
    return target


def named(output: Any, names: Iterable[str], what: str, dims: tuple[int, ...]) -> Tensor:
    """Return the first tensor of a model's output that has one of these names; an output that is a tensor itself.

    Raises:
        TypeError: there is none.
        ValueError: it has another number of dimensions.
    """
    found = output
    if not isinstance(output, Tensor):
        known = dict(output) if isinstance(output, Mapping) else vars(output) if hasattr(output, "__dict__") else {}
        found = next((known[name] for name in names if isinstance(known.get(name), Tensor)), None)
        if found is None:
            given = ", ".join(map(str, known)) or type(output).__name__
            raise TypeError(f"targets.{what}() needs {' or '.join(names)} in the output; got {given}")
    if found.dim() not in dims:
        raise ValueError(
            f"targets.{what}() is for outputs of {' or '.join(map(str, dims))} dimensions, but this "
            f"one has the shape {list(found.shape)}"
        )
    return found


def inside(number: int, count: int, what: str) -> int:
    """Return a number from 0 on for one that may count from the end.

    Raises:
        ValueError: there is no such place.
    """
    if not -count <= number < count:
        raise ValueError(f"there is no {what} {number}: the output has {count}, 0 to {count - 1}")
    return number % count


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be a whole number, got {value!r}")
    return operator.index(value)
