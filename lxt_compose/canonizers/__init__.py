"""Canonizers: change a model for as long as a composite is registered, without touching a parameter."""

from .base import Canonizer, Handle
from .merge_batch_norm import MergeBatchNorm
from .merge_forward import MergeBatchNormForward

__all__ = ["Canonizer", "Handle", "MergeBatchNorm", "MergeBatchNormForward"]
