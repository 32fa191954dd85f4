"""Galleries: the reference samples of a unit, colored by the relevance that passes through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.result import Attribution
from ..composite import Composite
from ..heatmap import image, text
from .conditional import conditional
from .references import Reference, References
from .units import Units, find_units

_AROUND = 12
"""How many tokens of a snippet stand before and after the place of the unit."""


def gallery(
    model: nn.Module,
    references: References,
    units: Any,
    number: int,
    sample: Callable[[int], Any],
    *,
    count: int = 8,
    tokens: Any = None,
    target: Any = None,
    composite: str | Composite = "attnlrp",
    crop: bool = False,
    title: Callable[[Reference], str] | None = None,
) -> Any:
    """Show the reference samples of a unit, colored by the relevance that passes through it at its best place.

    Args:
        model: the model.
        references: what :func:`find_references` returned.
        units: the units, by one of the names in the references; see :func:`find_units`.
        number: the number of the unit.
        sample: gives the inputs of one sample, a batch of one, by its number in the data set.
        count: how many samples to show.
        tokens: a tokenizer, or a function from token ids [tokens] to texts; for samples that are texts.
        target: what is explained of each sample.
        composite: the name of a preset, or a composite.
        crop: whether images are cut to the part that relevance reaches from the unit's place, its receptive field, and
            texts to the tokens around that place.
        title: what stands over a sample; by default its number and value.

    Returns:
        A picture, of images in a grid or of texts, which displays itself in a notebook and has ``save``.

    Raises:
        KeyError: the unit was not asked for.
        ValueError: no sample was found, or it is neither an image nor a text.
    """
    (found,) = find_units(model, units)
    best = references.of(str(found), number)[:count]
    if not best:
        raise ValueError(f"no sample was found for unit {number} of {found}")
    explained = [_explained(model, found, number, each, sample(each.sample), target, composite) for each in best]
    titles = [title(each) if title else f"sample {each.sample}: {each.value:.3g}" for each in best]
    name = next(iter(explained[0].relevances))
    dims = explained[0].dims_of(name)
    if "height" in dims and "width" in dims:
        pairs = [_cropped(each, crop=crop) for each in explained]
        return _images(pairs, titles)
    if "token" in dims:
        return _snippets(explained, tokens, best, titles, around=_AROUND if crop else None)
    raise ValueError(f"galleries show images and texts, but the dimensions of {name} are {' '.join(dims)}")


def _explained(
    model: nn.Module, units: Units, number: int, best: Reference, inputs: Any, target: Any, composite: Any
) -> Attribution:
    one = Units(f"{units.place.name}[{number}]", units.place, (number,), best.place or None)
    return conditional(model, inputs, one, target=target, composite=composite)


def _scores(found: Attribution) -> Tensor:
    """Return the scores of the one sample, for its first input."""
    scores = found.scores
    return (scores if isinstance(scores, Tensor) else next(iter(scores.values())))[0]


def _cropped(found: Attribution, *, crop: bool) -> tuple[Tensor, Tensor]:
    """Return the scores and the image of one sample, maybe cut to where the scores are not 0."""
    scores = _scores(found)
    pixels = next(iter(found.inputs.values()))[0].float().mean(0)
    if not crop or not scores.any():
        return scores, pixels
    rows, columns = (torch.nonzero(scores.any(1 - d)).flatten() for d in (0, 1))
    cut = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return scores[cut], pixels[cut]


def _images(pairs: list[tuple[Tensor, Tensor]], titles: list[str]) -> Any:
    """Return images in a grid; smaller crops (at the border) are filled up with 0."""
    height, width = (max(scores.shape[d] for scores, _ in pairs) for d in (0, 1))

    def filled(x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, width - x.shape[1], 0, height - x.shape[0]))

    scores, pixels = (torch.stack([filled(pair[place]) for pair in pairs]) for place in (0, 1))
    return image(scores, image=pixels[:, None], titles=titles)


def _snippets(
    explained: list[Attribution], tokens: Any, best: list[Reference], titles: list[str], *, around: int | None
) -> Any:
    """Return texts with the token at the unit's best place marked, maybe cut to the tokens around it."""
    words, scores, marks = [], [], []
    for found, reference in zip(explained, best, strict=True):
        mine, values = _texts(found, tokens), _scores(found)
        at = reference.place[0] if len(reference.place) == 1 and reference.place[0] < len(mine) else None
        start, end = 0, len(mine)
        if around is not None and at is not None:
            start, end = max(at - around, 0), min(at + around + 1, len(mine))
        before, after = ["…"] * (start > 0), ["…"] * (end < len(mine))
        words.append([*before, *mine[start:end], *after])
        scores.append([*(0.0 for _ in before), *values[start:end].tolist(), *(0.0 for _ in after)])
        marks.append([] if at is None else [at - start + len(before)])
    return text(words, scores, titles=titles, marked=marks)


def _texts(found: Attribution, tokens: Any) -> list[str]:
    """Return the texts of the tokens of one sample."""
    if callable(tokens) and not hasattr(tokens, "convert_ids_to_tokens"):
        ids = next(iter(found.inputs.values()))[0]
        return list(tokens(ids))
    return found.tokens(tokens)
