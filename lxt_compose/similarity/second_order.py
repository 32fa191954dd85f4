"""Pairs of places of two inputs, and their joint relevance (BiLRP)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.inputs import Inputs
from ..composite import Composite
from ..generation.forced import Forced, Wanted
from .pair import Pooling


@dataclass(frozen=True)
class OfFeatures:
    """The relevance of places for each feature of an embedding, [features, places], and the embedding [features]."""

    relevance: Tensor
    values: Tensor


def of_features(
    model: nn.Module,
    composite: Composite,
    given: Inputs,
    cells: Mapping[str, Callable[[Tensor], Tensor]],
    pooling: Pooling,
    chunk: int | None,
    budget: int | None,
) -> OfFeatures:
    """Return the relevance of each place of an input for each feature of its embedding; many features at a time.

    Args:
        model: the model.
        composite: the composite.
        given: the input, one sample of keyword arguments.
        cells: what makes the relevance of places of that of an image or a sound, by its name.
        pooling: makes the embedding of the output.
        chunk: how many features to run at a time; None is as many as fit.
        budget: bytes that they may take, about.
    """
    with torch.no_grad():
        batch = given.copied()
        count = pooling(model(*batch.args, **batch.kwargs), batch.kwargs).shape[1]

    def pick(output: Any) -> tuple[Tensor, Tensor]:
        values = pooling(output, given.kwargs)[0]
        return values, values[None]

    every = torch.arange(count)
    forced = Forced(model, composite, given, Wanted(every, every, torch.eye(count), pick=pick), cells)
    found = forced.find(chunk, budget, ledger=False)
    return OfFeatures(torch.cat([found.scores[name] for name in placed(given)], 1), found.values)


def placed(given: Inputs) -> list[str]:
    """Return the inputs whose places are shown, in their order: images and sounds, then tokens."""
    return [*given.carriers, *given.ids]


@dataclass(frozen=True)
class Pairs:
    """The similarity by pairs of places.

    ``both`` [places of the first, places of the second] is that of pairs. ``first`` and ``second`` are what a place has
    together with the part of the other embedding on no place (its biases and the like), ``rest`` what these parts have
    together. All of them add up to the similarity.
    """

    both: Tensor
    first: Tensor
    second: Tensor
    rest: float


def pairs_of(a: OfFeatures, b: OfFeatures, scale: float) -> Pairs:
    """Return the relevance of pairs of places for a similarity.

    With R_m(x)_i the relevance of place i for feature m of the embedding e(x),

        ``R_ij = scale * sum_m R_m(x)_i R_m(x')_j``

    adds up to ``e(x) . e(x')`` where each R_m adds up to its feature; the part of a feature on no place is kept
    separately. For the cosine, scale is one over the product of the norms, which are held constant.

    Args:
        a: the relevance of the first input for each feature.
        b: the same of the second.
        scale: see above.

    Source: Eberle et al. 2020, Building and Interpreting Deep Similarity Models (BiLRP), equation 6.
    """
    left, right = a.relevance.double(), b.relevance.double()
    bare_left, bare_right = a.values.double() - left.sum(1), b.values.double() - right.sum(1)
    return Pairs(
        scale * left.T @ right,
        scale * left.T @ bare_right,
        scale * right.T @ bare_left,
        float(scale * bare_left @ bare_right),
    )
