"""Targets of heads that answer with several numbers together: a span of a text, the similarity of two inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .places import Target, called, inside, named


def answer(start: int | None = None, end: int | None = None) -> Target:
    """Return the target of question answering: ``start_logits[n, s] + end_logits[n, e]``, the score of a span.

    Args:
        start: the first token of the span; None is that of the best one with s <= e.
        end: its last token; None is the best one with the start.
    """

    def target(output: Any) -> Tensor:
        starts, ends = (named(output, (f"{side}_logits",), "answer", dims=(2,)) for side in ("start", "end"))
        first, last = spans_of(starts, ends, start, end)
        return starts.gather(1, first[:, None])[:, 0] + ends.gather(1, last[:, None])[:, 0]

    return called(target, "answer" if start is None and end is None else f"answer {start} to {end}")


def spans_of(starts: Tensor, ends: Tensor, start: int | None = None, end: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the first and the last token of the best span of each sample, [n] each.

    Args:
        starts: logits [n, tokens] of a span to begin there.
        ends: the same of its end.
        start: where it begins, if that is given.
        end: where it ends, if that is given.

    Raises:
        ValueError: there is no such token, or the end is before the start.
    """
    count = starts.shape[1]
    table = (starts[:, :, None] + ends[:, None, :]).detach()
    allowed = torch.ones(count, count, dtype=torch.bool, device=table.device).triu()
    for given, axis in ((start, 0), (end, 1)):
        if given is not None:
            here = torch.arange(count, device=table.device) == inside(given, count, "token")
            allowed = allowed & here.unsqueeze(1 - axis)
    if start is not None and end is not None and inside(start, count, "token") > inside(end, count, "token"):
        raise ValueError(f"the answer ends at token {end}, before its start {start}")
    best = table.masked_fill(~allowed, float("-inf")).flatten(1).argmax(1)
    return best // count, best % count


def similarity(image: int | None = None, text: int | None = None) -> Target:
    """Return the target of CLIP, SigLIP and the like: ``logits_per_image``, the scaled similarity of image and text.

    Args:
        image: the number of the image; None with ``text`` None: each image with the text of its own number, [n].
        text: the number of the text; with ``image`` None, each image with this one, [images].

    Raises:
        ValueError: an image is given without a text.
    """
    if image is not None and text is None:
        raise ValueError("similarity() needs the text too, or neither: each image with the text of its own number")

    def target(output: Any) -> Tensor:
        table = named(output, ("logits_per_image",), "similarity", dims=(2,))
        if text is None:
            if table.shape[0] != table.shape[1]:
                raise ValueError(f"there are {table.shape[0]} images, but {table.shape[1]} texts: say which text")
            return table.diagonal()
        column = table[:, inside(text, table.shape[1], "text")]
        return column if image is None else column[inside(image, len(column), "image")][None]

    return called(target, "similarity" if text is None else f"similarity to text {text}")
