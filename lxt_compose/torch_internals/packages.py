"""Private parts of torch for graphs as machine code: packages of AOTInductor."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

_INSIDE = "/data/aotinductor/"
_METADATA = "aot_inductor.metadata"


def package(program: Any, path: str | Path, told: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """Compile what `torch.export` has written, and write it to a ``.pt2`` file, with texts by name.

    Unnecessary once AOTInductor has a place among `torch.export` or `torch.compiler`.

    Raises:
        ValueError: the name of the file does not end in ``.pt2``.
    """
    if Path(path).suffix != ".pt2":
        raise ValueError(f"the name of the file must end in .pt2, got {Path(path).name}")
    settings = {**options, _METADATA: {**options.get(_METADATA, {}), **told}}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def is_package(path: str | Path) -> bool:
    """Return whether a file is such a package."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(_INSIDE in name for name in file.namelist())


def from_package(path: str | Path) -> tuple[Callable[..., Any], dict[str, str]]:
    """Return the function of a package, and the texts in it."""
    found = torch._inductor.aoti_load_package(str(path))
    return found, dict(found.get_metadata())
