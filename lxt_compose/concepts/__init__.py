"""From relevance to understanding: units of any model by name, and what they do.

Units are named alike everywhere: ``"conv2[3]"``, ``"layers.*.mlp.act[0:64]"``, ``"layers.3.attn:heads[2]@-1"``, or
taken from a :class:`Dictionary`.
"""

from .conditional import conditional
from .dictionary import Dictionary
from .intervene import Effect, Intervention, ablate, effect, patch, record, steer
from .units import Units, find_units

__all__ = [
    "Dictionary",
    "Effect",
    "Intervention",
    "Units",
    "ablate",
    "conditional",
    "effect",
    "find_units",
    "patch",
    "record",
    "steer",
]
