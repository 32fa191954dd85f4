"""Functions of tensors as graphs: written down once, made shorter, run without hooks or modes."""

from .kept import ByModel, Kept
from .model_state import ModelState
from .program import Program

__all__ = ["ByModel", "Kept", "ModelState", "Program"]
