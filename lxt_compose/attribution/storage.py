"""An attribution as a file of tensors, numbers and texts, which is read without running any code in it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from ..coverage.report import CoverageReport
from ..coverage.rows import Row, Status
from ..ledger import Ledger
from .data import AttributionData

_FORMAT = "lxt_compose attribution"
_VERSION = 1


def save(attribution: AttributionData, path: Path) -> None:
    """Write an attribution."""
    report = attribution.report
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "relevance": attribution.relevance,
        "output": attribution.output,
        "target": attribution.target,
        "latent": attribution.latent,
        "inputs": attribution.inputs,
        "mask": attribution.mask,
        "dims": attribution.dims,
        "beside": attribution.beside,
        "target_names": list(attribution.target_names),
        "ran": attribution.ran,
        "report": {
            "rows": report.to_dicts(),
            "unmatched": list(report.unmatched),
            "executed": report.executed,
            "notes": list(report.notes),
            "in_parts": report.in_parts,
            "carried": report.carried,
        },
        "ledger": None if attribution.ledger is None else attribution.ledger.to_dict(),
    }
    with path.open("wb") as file:  # torch takes some endings of names for other formats
        torch.save(_compact(content), file)


def _compact(value: Any) -> Any:
    """Return the tensors, with copies of views, whose whole base would be written else."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.numel() * value.element_size() else value
    if isinstance(value, dict):
        return {key: _compact(entry) for key, entry in value.items()}
    return value


def load(path: Path) -> dict[str, Any]:
    """Read the fields of an attribution, by name.

    Raises:
        ValueError: it is no such file, or one of a later version.
    """
    try:
        with path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no file that Attribution.save() wrote") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is no file that Attribution.save() wrote")
    if content["version"] > _VERSION:
        raise ValueError(f"{path} was written by a later version of lxt_compose: format {content['version']}")
    report = dict(content["report"])
    rows = [Row(**{**r, "status": Status(r["status"]), "aliases": tuple(r["aliases"])}) for r in report.pop("rows")]
    ledger = content["ledger"]
    fields = {name: content[name] for name in ("relevance", "output", "target", "latent", "inputs", "mask")}
    return {
        **fields,
        "dims": content.get("dims", {}),  # not in files of the first version
        "beside": content.get("beside", {}),
        "target_names": tuple(content.get("target_names", ())),
        "ran": content.get("ran", "eager"),
        "ledger": None if ledger is None else Ledger.from_dict(ledger),
        "report": CoverageReport(rows, **report),
    }
