"""Measures of an explanation: removing what it names, randomizing the model, leaving parts out one by one."""

from .flipping import Flip, flip
from .occlusion import leave_one_out
from .randomization import Randomization, randomization
from .rank import correlation, ranks

__all__ = ["Flip", "Randomization", "correlation", "flip", "leave_one_out", "randomization", "ranks"]
