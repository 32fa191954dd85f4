"""From relevance to understanding: units of any model by name, and what they do.

Units are named alike everywhere: ``"conv2[3]"``, ``"layers.*.mlp.act[0:64]"``, ``"layers.3.attn:heads[2]@-1"``, or
taken from a :class:`Dictionary`.
"""

from .conditional import conditional
from .dictionary import Dictionary
from .gallery import gallery
from .intervene import Effect, Intervention, ablate, effect, patch, record, steer
from .measure import Measured, activations, relevances
from .references import Reference, References, find_references
from .units import Units, find_units

__all__ = [
    "Dictionary",
    "Effect",
    "Intervention",
    "Measured",
    "Reference",
    "References",
    "Units",
    "ablate",
    "activations",
    "conditional",
    "effect",
    "find_references",
    "find_units",
    "gallery",
    "patch",
    "record",
    "relevances",
    "steer",
]
