"""Functions of tensors as graphs: traced once, simplified, run without hooks or modes."""

from collections.abc import Callable
from typing import Any

from .kept import ByModel, Kept
from .model_state import ModelState
from .program import Program, Written

trace_with: list[Callable[..., Any]] = []
"""The function that traces the attribution of a model; `attribution`, which imports this package, adds it."""

__all__ = ["ByModel", "Kept", "ModelState", "Program", "Written", "trace_with"]
