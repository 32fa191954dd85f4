"""The manifest of a folder of results: model, rules, versions, coverage, number of samples."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..composite import Composite
from .shards import Shards, write_whole

_NAME, _FORMAT, _VERSION = "_manifest.json", "lxt_compose data set", 1
# Readers of Parquet do not take files whose names begin with "_" for data.
_MUST_AGREE = ("model", "composite", "settings")


def described(model: nn.Module, composite: Composite, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that are known before the first sample."""
    versions = {name: _version_of(name) for name in ("lxt_compose", "torch", "transformers") if name in sys.modules}
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "model": {"class": type(model).__qualname__, "parameters": _count(model), "shapes": _digest(model)},
        "composite": {"repr": repr(composite), "formulation": composite.formulation},
        "settings": settings,
        "versions": versions | {"python": platform.python_version()},
    }


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _digest(model: nn.Module) -> str:
    """Return a digest of the names and shapes of parameters, not of their values."""
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]


def _version_of(name: str) -> str:
    if name == "torch":
        return torch.__version__
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def begin(folder: Path, what: dict[str, Any]) -> None:
    """Write the manifest of a new run, or check that an existing one is of the same model and rules.

    Raises:
        ValueError: the folder holds results of another model or other rules.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _NAME
    if not path.exists():
        write_whole(path, lambda part: part.write_text(json.dumps(what, indent=1)))
        return
    kept = json.loads(path.read_text())
    for name in _MUST_AGREE:
        if kept.get(name) != what[name]:
            raise ValueError(
                f"{folder} holds results with another {name}: {kept.get(name)}, and now it is {what[name]}; choose "
                f"another folder for out="
            )


def finish(folder: Path, what: dict[str, Any], total: int | None) -> dict[str, Any]:
    """Write the results of all processes so far into the manifest, and return it.

    Args:
        folder: with the files of all processes.
        what: the result of :func:`described`.
        total: the number of samples, if it is known.
    """
    shards = Shards(folder)
    done, failed = shards.done()
    coverage = shards.coverage().to_dict()
    complete = coverage.pop("complete") and len(done) > failed
    count = {"total": total, "done": len(done), "failed": failed}
    manifest = {**what, "samples": count, "complete": complete, "coverage": coverage}
    write_whole(folder / _NAME, lambda part: part.write_text(json.dumps(manifest, indent=1)))
    return manifest
