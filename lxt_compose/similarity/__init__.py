"""What makes two inputs alike: places of both, and pairs of them."""

from .entry import attribute_similarity
from .pair import POOLINGS
from .result import SimilarityAttribution
from .second_order import Pairs

__all__ = ["POOLINGS", "Pairs", "SimilarityAttribution", "attribute_similarity"]
