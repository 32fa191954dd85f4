"""Targets by name, for heads that answer at many places: functions of a model's output that :func:`attribute` takes."""

from .answers import answer, similarity
from .places import SIDES, box, each, frame, mask, pixel, query, region, token
from .speech import Emission, emission, emissions, seconds_of

__all__ = [
    "SIDES",
    "Emission",
    "answer",
    "box",
    "each",
    "emission",
    "emissions",
    "frame",
    "mask",
    "pixel",
    "query",
    "region",
    "seconds_of",
    "similarity",
    "token",
]
