"""The relevance of places of two inputs, and of pairs of places, for their similarity."""

from .entry import attribute_similarity
from .pair import MEASURES, POOLINGS
from .result import SimilarityAttribution
from .second_order import Pairs

__all__ = ["MEASURES", "POOLINGS", "Pairs", "SimilarityAttribution", "attribute_similarity"]
