"""Functions of tensors as graphs: written down once, made shorter, run without hooks or modes."""

from .program import Program

__all__ = ["Program"]
