"""Heads that answer with several numbers together, and the targets of heads that answer at many places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..targets.answers import spans_of
from ..torch_internals.traces import is_traced

_FEW = 4
_EMBEDDINGS = ("last_hidden_state", "pooler_output", "text_embeds", "image_embeds", "embeddings")


def entries(output: Any) -> dict[str, Any]:
    """Return the entries of a model's output by name; none of a tensor or tuple."""
    return dict(output) if isinstance(output, Mapping) else {}


def is_span(output: Any) -> bool:
    """Return whether an output is that of question answering: logits of the first and the last token of a span."""
    return {"start_logits", "end_logits"} <= entries(output).keys() and "logits" not in entries(output)


def is_similarity(output: Any) -> bool:
    """Return whether an output is a table of the similarities of images and texts."""
    return isinstance(entries(output).get("logits_per_image"), Tensor) and "logits" not in entries(output)


def is_masks(output: Any) -> bool:
    """Return whether an output holds a class and a mask for each query: MaskFormer, Mask2Former, OneFormer."""
    return {"class_queries_logits", "masks_queries_logits"} <= entries(output).keys()


def is_depth(output: Any) -> bool:
    """Return whether an output holds one number for each pixel, without classes."""
    return isinstance(entries(output).get("predicted_depth"), Tensor)


def is_embedding(output: Any) -> bool:
    """Return whether an output holds embeddings alone."""
    found = [name for name, value in entries(output).items() if isinstance(value, Tensor)]
    return hasattr(output, "last_hidden_state") or (bool(found) and all(name in _EMBEDDINGS for name in found))


def joint(output: Any, count: int) -> Tensor | None:
    """Return the numbers that a head answers with together, [n, choices]; None for other heads.

    Of question answering the score of the best span, ``max_(s <= e) start[s] + end[e]``, [n, 1]. Of image and text the
    similarity to each text, [n, texts], or, if there are as many of both, that of each image with its own text, [n, 1].
    """
    if is_span(output):
        known = entries(output)
        first, last = spans_of(known["start_logits"], known["end_logits"])
        start, end = known["start_logits"].gather(1, first[:, None]), known["end_logits"].gather(1, last[:, None])
        return start + end if len(start) == count else None
    if is_similarity(output):
        table: Tensor = entries(output)["logits_per_image"]
        if table.shape[0] != count:
            return None
        return table.diagonal()[:, None] if table.shape[1] == count else table
    return None


def said_of(output: Any, count: int) -> str | None:
    """Return a note for the report on what is explained, where a head answers with several numbers together."""
    if is_span(output):
        if is_traced():
            return "explained: start and end of the best span"
        known = entries(output)
        pairs = zip(*(x.tolist() for x in spans_of(known["start_logits"], known["end_logits"])), strict=True)
        spans = [f"{first} to {last}" for first, last in pairs]
        return f"explained: start and end of the best span, tokens {', '.join(spans[:_FEW])}{', ...' * (count > _FEW)}"
    if is_similarity(output) and entries(output)["logits_per_image"].shape == (count, count):
        return "explained: the similarity of each image with the text of its own number"
    return None


# ---- what there is to choose from ------------------------------------------------------------------------------------


def choices_of(output: Any) -> str:
    """Return the possible targets of an output without one tensor of logits, in words for an error."""
    if is_span(output):
        return "targets.answer() for the best span, targets.answer(start, end) for another"
    if is_similarity(output):
        images, texts = entries(output)["logits_per_image"].shape
        return (
            f"targets.similarity(image, text) for one of {images} images and {texts} texts, targets.similarity(text=0) "
            f"for each image with one text, or dims={{'input_ids': 'choice token'}} to take texts for classes of images"
        )
    if is_masks(output):
        queries, classes = entries(output)["class_queries_logits"].shape[1:]
        return (
            f"targets.mask(query) for the mask of one of {queries} queries, targets.query(query, label) for its class, "
            f"one of {classes} with the last for no object; attribute_outputs() explains all that it finds"
        )
    if is_embedding(output):
        return (
            "attribute_similarity(model, first, second) for what makes two inputs alike, or a function of the output, "
            "such as lambda output: output.last_hidden_state[:, 0, 17]"
        )
    return "a function of the output that returns one number per sample"


def choices_at(output: Any, logits: Tensor, model: nn.Module) -> str:
    """Return the possible targets of a head that answers at many places, in words for an error.

    Args:
        output: of the model.
        logits: the tensor in it that holds the answers.
        model: the model, for the names of its labels and of its kind.
    """
    kind, shape = type(model).__name__, tuple(logits.shape)
    labels = _labels(model, shape)
    if is_depth(output):
        return f"targets.pixel(row, column) for one of {shape[-2]} x {shape[-1]} pixels"
    if "pred_boxes" in entries(output):
        return _places("query", shape, labels) + "; targets.box(3, 'center_x') for a side of its box"
    if len(shape) == 4:
        return (
            f"targets.pixel(row, column, label) for one of {shape[2]} x {shape[3]} pixels"
            f"{f' (labels {labels})' if labels else ''}, targets.region(label) for all pixels of a label"
        )
    if "CTC" in kind:
        return _places("frame", shape, labels) + "; targets.emission(0, blank) for the first symbol that is emitted"
    return _places("frame" if "Audio" in kind else "token", shape, labels)


def _places(what: str, shape: tuple[int, ...], labels: str) -> str:
    count = shape[1] if len(shape) > 1 else 1
    place = min(3, count - 1)
    if len(shape) < 3:
        return (
            f"targets.{what}({place}) for one of {count}, targets.each(targets.{what}, range({count})) for all of them"
        )
    return (
        f"targets.{what}({place}) for what it answers at {what} {place} of {count}, targets.{what}({place}, label) for "
        f"a label there{f' ({labels})' if labels else ''}, targets.each(targets.{what}, range({count})) for all of them"
    )


def _labels(model: nn.Module, shape: tuple[int, ...]) -> str:
    """Return the first labels of a model with their numbers."""
    known = getattr(getattr(model, "config", None), "id2label", None) or {}
    if len(known) not in (shape[-1], shape[-1] - 1, shape[1] if len(shape) == 4 else -1):
        return ""
    first = [f"{number}: {name}" for number, name in list(known.items())[:_FEW]]
    return ", ".join(first) + ", ..." * (len(known) > _FEW)


def texts_as_choices(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Return the dimensions of texts that are the classes of images: those of two towers, and of another number."""
    config, ids = getattr(model, "config", None), inputs.get("input_ids")
    images = inputs.get("pixel_values")
    towers = hasattr(config, "text_config") and hasattr(config, "vision_config")
    generates = getattr(model, "can_generate", lambda: False)()
    if not towers or generates or ids is None or images is None or ids.dim() != 2 or images.dim() != 4:
        return {}
    return {"input_ids": ("choice", "token")} if len(ids) != len(images) else {}
