"""An attribution as rows of a table: one for each sample and target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..attribution import Attribution
from ..attribution.inputs import is_integer

Row = dict[str, Any]


def rows_of(found: Attribution, numbers: list[int], keep: str) -> list[Row]:
    """Return the rows of some samples.

    Args:
        found: the attribution of the samples.
        numbers: of the samples in their data set.
        keep: "scores", one number per token, pixel, ...; or "relevance", with channels and features.

    Raises:
        ValueError: an input has no dimension that counts samples, or unknown dimensions.
    """
    turns = max(1, len(found.target_names))
    rows: list[Row] = [_head(found, row, numbers[row // turns], turns) for row in range(len(found))]
    alone = isinstance(found.relevance, Tensor)
    for name in (*found.relevances, *found.latent):
        values = found._per_sample(name) if keep == "scores" else {**found.latent, **found.relevances}[name]
        if len(values) != len(found):
            raise ValueError(
                f"{name} is shared by all samples, which makes no row for each: pass it by way of the model"
            )
        values = values.double() if values.dtype == torch.float64 else values.float()
        column = keep if alone and name not in found.beside and name in found.relevances else f"{keep}.{name}"
        for row, entry in enumerate(rows):
            real = _real(found, name, row)
            value = values[row] if real is None else values[row][real]
            entry[column], entry[f"{column}.shape"] = value.flatten().numpy(), list(value.shape)
            ids = found.inputs.get(name)
            if ids is not None and is_integer(ids) and len(ids) == len(found):
                entry[name] = (ids[row] if real is None else ids[row][real]).flatten().numpy()
    return rows


def _head(found: Attribution, row: int, number: int, turns: int) -> Row:
    target = None if found.target is None else found.target[row].tolist()
    first, second = target if isinstance(target, list) else (target, None)
    name = found.target_names[row % turns] if found.target_names else None
    output = float(found.output[row])
    return {"sample": number, "error": None, "output": output, "target": first, "against": second, "target_name": name}


def failed_row(number: int, reason: str) -> Row:
    """Return the row of a sample that could not be explained."""
    head = {"sample": number, "error": reason, "output": None, "target": None, "against": None}
    return {**head, "target_name": None}


def _real(found: Attribution, name: str, row: int) -> Tensor | None:
    """Return which positions of a sample are no padding; None if all are, or it has no positions."""
    mask, values = found.mask, {**found.latent, **found.relevances}[name]
    if mask is None or mask.dim() != 2 or name not in found.relevances or values.shape[:2] != mask.shape:
        return None
    return found.real(row, input=name)
