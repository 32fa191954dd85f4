"""Evaluation of explanations: removal of parts of the input, randomization of the model, occlusion; tuning."""

from .candidates import Candidate, Grid
from .flipping import Flip, flip
from .occlusion import leave_one_out
from .randomization import Randomization, randomization
from .rank import correlation, ranks
from .scoring import SCORES
from .tuned import Tuning
from .tuning import tune

__all__ = [
    "SCORES",
    "Candidate",
    "Flip",
    "Grid",
    "Randomization",
    "Tuning",
    "correlation",
    "flip",
    "leave_one_out",
    "randomization",
    "ranks",
    "tune",
]
