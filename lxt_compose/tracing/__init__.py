"""Functions of tensors as graphs: written down once, made shorter, run without hooks or modes."""

from collections.abc import Callable
from typing import Any

from .kept import ByModel, Kept
from .model_state import ModelState
from .program import Program

trace_with: list[Callable[..., Any]] = []
"""How the attribution of a model is written down; the room of attributions, which stands above, enters it here."""

__all__ = ["ByModel", "Kept", "ModelState", "Program", "trace_with"]
