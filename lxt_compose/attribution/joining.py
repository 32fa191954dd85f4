"""What the batches of one attribution add up to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import AttributionError
from .axes import BATCH, Dims, place_of
from .inputs import Inputs


def join_inputs(parts: list[dict[str, Any]], given: Inputs) -> dict[str, Tensor]:
    """The relevance of each input from all batches; one that all samples share has the sum of what they give it.

    Args:
        parts: what was found in each batch, with the relevance by the names of the inputs.
        given: the inputs of all batches.
    """
    inputs = {**given.carriers, **given.ids}
    joined: dict[str, Tensor] = {}
    for name in parts[0]["relevance"]:
        pieces = [part["relevance"][name] for part in parts]
        batch = given.batch_of(inputs[name])
        joined[name] = torch.stack(pieces).sum(0) if batch is None else torch.cat(pieces, batch)
    return joined


def join_layer(layer: str, parts: list[dict[str, Any]], dims: Dims) -> Tensor:
    """The relevance of one layer from all batches; of what all samples share (a table of positions, say), their sum.

    Raises:
        AttributionError: it cannot be told which part of the layer's output belongs to which sample.
    """
    pieces, counts = [part["latent"][layer] for part in parts], [len(part["output"]) for part in parts]
    if len(pieces) == 1:
        return pieces[0]
    batch = place_of(dims, BATCH)
    if pieces[0].dim() and (batch is None or pieces[0].shape[batch] == 1 < counts[0]):
        return torch.stack(pieces).sum(0)
    if batch is None or any(piece.shape[batch] % count for piece, count in zip(pieces, counts, strict=True)):
        raise AttributionError(
            f"the relevance of {layer} has shape {list(pieces[0].shape)} for {counts[0]} samples: its first dimension "
            f"does not count them, so batches of it cannot be joined; pass batch_size=None, or other layers"
        )
    return torch.cat(pieces, batch)
