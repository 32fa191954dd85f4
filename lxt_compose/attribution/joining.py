"""What the batches of one attribution add up to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..coverage.report import CoverageReport
from ..errors import AttributionError
from ..ledger import Ledger
from .axes import BATCH, Dims, embedded, place_of
from .inputs import Inputs


def joined(
    parts: list[dict[str, Any]], given: Inputs, report: CoverageReport, *, ledger: Ledger | None = None
) -> dict[str, Any]:
    """What batches add up to, as the arguments that an Attribution is made from.

    Args:
        parts: what was found in each batch.
        given: the inputs of all batches.
        report: the report.
        ledger: where the relevance went.

    Raises:
        AttributionError: it cannot be told which part of a layer's output belongs to which sample.
    """
    whole = join_inputs(parts, given)
    beside = {name: r for name, r in whole.items() if name in given.beside}
    relevance = {name: r for name, r in whole.items() if name not in beside}
    mask = given.mask_of(next(iter(relevance)))
    layer_dims = {name: given.said.get(name, dims) for name, dims in parts[0]["layer_dims"].items()}
    return {
        "relevance": next(iter(relevance.values())) if len(relevance) == 1 else relevance,
        "output": torch.cat([part["output"] for part in parts]),
        "target": None if parts[0]["target"] is None else torch.cat([part["target"] for part in parts]),
        "report": report,
        "latent": {layer: join_layer(layer, parts, layer_dims[layer]) for layer in parts[0]["latent"]},
        "ledger": ledger,
        "inputs": {name: x.detach().cpu() for name, x in given.all.items() if name in whole},
        "mask": None if mask is None else mask.detach().cpu(),
        "dims": {name: _dims_of(given, name, r) for name, r in whole.items()} | layer_dims,
        "beside": beside,
    }


def _dims_of(given: Inputs, name: str, relevance: Tensor) -> Dims:
    """The dimensions of the relevance of an input: integers that were looked up have features."""
    dims = given.dims[name]
    return dims if relevance.dim() == len(dims) else embedded(dims)


def join_inputs(parts: list[dict[str, Any]], given: Inputs) -> dict[str, Tensor]:
    """The relevance of each input from all batches; one that all samples share has the sum of what they give it.

    Args:
        parts: what was found in each batch, with the relevance by the names of the inputs.
        given: the inputs of all batches.
    """
    joined: dict[str, Tensor] = {}
    for name in parts[0]["relevance"]:
        pieces = [part["relevance"][name] for part in parts]
        batch = given.batch_of(given.all[name])
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
