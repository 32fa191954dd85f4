"""Canonizers: change a model for as long as a composite is registered, without touching a parameter."""

from .base import Canonizer, Handle
from .merge_batch_norm import MergeBatchNorm

__all__ = ["Canonizer", "Handle", "MergeBatchNorm"]
