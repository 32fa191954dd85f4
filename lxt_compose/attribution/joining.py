"""Batches of one attribution joined into one result."""

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
    parts: list[dict[str, Any]],
    given: Inputs,
    report: CoverageReport,
    names: tuple[str, ...] = (),
    *,
    ledger: Ledger | None = None,
) -> dict[str, Any]:
    """Return the joined results of batches, as the arguments of an Attribution.

    Args:
        parts: what was found in each batch.
        given: the inputs of all batches.
        report: the report.
        names: of the targets, if there are several for each sample.
        ledger: where the relevance went.

    Raises:
        AttributionError: it is unknown which part of a layer's output belongs to which sample.
    """
    whole = join_inputs(parts, given)
    beside = {name: r for name, r in whole.items() if name in given.beside}
    relevance = {name: r for name, r in whole.items() if name not in beside}
    mask = given.mask_of(next(iter(relevance)))
    layer_dims = {name: given.said.get(name, dims) for name, dims in parts[0]["dims"].items()}
    turns = len(names) or 1
    return {
        "relevance": next(iter(relevance.values())) if len(relevance) == 1 else relevance,
        "output": torch.cat([part["output"] for part in parts]),
        "target": None if parts[0]["target"] is None else torch.cat([part["target"] for part in parts]),
        "report": report,
        "latent": {layer: join_layer(layer, parts, layer_dims[layer]) for layer in parts[0]["latent"]},
        "ledger": ledger,
        "inputs": {name: _repeated(x, given, turns) for name, x in given.all.items() if name in whole},
        "mask": None if mask is None else _repeated(mask, given, turns),
        "dims": {name: _dims_of(given, name, r, turns) for name, r in whole.items()} | layer_dims,
        "beside": beside,
        "target_names": names,
    }


def _dims_of(given: Inputs, name: str, relevance: Tensor, turns: int) -> Dims:
    """Return the dimensions of the relevance of an input: integers that were looked up have features."""
    dims = given.dims[name]
    if turns > 1 and given.batch_of(given.all[name]) is None:
        dims = (BATCH, *dims)
    return dims if relevance.dim() == len(dims) else embedded(dims)


# ---- several targets -------------------------------------------------------------------------------------------------


def _repeated(x: Tensor, given: Inputs, turns: int) -> Tensor:
    """Return a row for each target, those of a sample in turn; for values without samples, one for each target."""
    batch, x = given.batch_of(x), x.detach().cpu()
    if turns == 1:
        return x
    return x.expand(turns, *x.shape) if batch is None else x.repeat_interleave(turns, batch)


def _woven(pieces: list[Tensor], batch: int | None) -> Tensor:
    """Return the rows of several targets, those of a sample in turn."""
    if len(pieces) == 1:
        return pieces[0]
    return torch.stack(pieces) if batch is None else torch.stack(pieces, batch + 1).flatten(batch, batch + 1)


def one_after_the_other(found: list[dict[str, Any]], given: Inputs, layer_dims: dict[str, Dims]) -> dict[str, Any]:
    """Return what several backward passes of one batch found, as rows, with those of a sample next to each other.

    Args:
        found: what each found, for a target.
        given: the inputs of all batches.
        layer_dims: the dimensions of the layers' relevance.
    """
    if len(found) == 1:
        return found[0]
    targets = [each["target"] for each in found]
    of_one_kind = all(target is not None and target.shape == targets[0].shape for target in targets)
    latent = {}
    for layer in found[0]["latent"]:
        pieces, batch = [each["latent"][layer] for each in found], place_of(layer_dims[layer], BATCH)
        count = len(found[0]["output"])
        if batch is None or pieces[0].shape[batch] % count:
            raise not_joined(layer, pieces[0], count)
        parts = pieces[0].shape[batch] // count  # windows or patches that count as samples
        apart = [piece.unflatten(batch, (count, parts)) for piece in pieces]
        latent[layer] = _woven(apart, batch).flatten(batch, batch + 1)
    return {
        "relevance": {
            name: _woven([each["relevance"][name] for each in found], given.batch_of(given.all[name]))
            for name in found[0]["relevance"]
        },
        "output": _woven([each["output"] for each in found], 0),
        "target": _woven(targets, 0) if of_one_kind else None,
        "latent": latent,
    }


def not_joined(layer: str, piece: Tensor, count: int) -> AttributionError:
    """Return the error for a layer of whose relevance the samples are unknown."""
    return AttributionError(
        f"the relevance of {layer} has shape {list(piece.shape)} for {count} samples: its first dimension does not "
        f"count them, so it cannot be told apart; pass batch_size=None and one target for each sample, or other layers"
    )


def join_inputs(parts: list[dict[str, Any]], given: Inputs) -> dict[str, Tensor]:
    """Return the relevance of each input from all batches; for an input that all samples share, the sum.

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
    """Return the relevance of one layer from all batches; for values that all samples share, the sum.

    Raises:
        AttributionError: it is unknown which part of the layer's output belongs to which sample.
    """
    pieces, counts = [part["latent"][layer] for part in parts], [len(part["output"]) for part in parts]
    if len(pieces) == 1:
        return pieces[0]
    batch = place_of(dims, BATCH)
    if pieces[0].dim() and (batch is None or pieces[0].shape[batch] == 1 < counts[0]):
        return torch.stack(pieces).sum(0)
    if batch is None or any(piece.shape[batch] % count for piece, count in zip(pieces, counts, strict=True)):
        raise not_joined(layer, pieces[0], counts[0])
    return torch.cat(pieces, batch)
