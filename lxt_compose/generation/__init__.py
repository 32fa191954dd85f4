"""Attribution of whole answers: the relevance of prompt and earlier tokens for each token."""

from .answer import Answer, Contrast, Predictions, Sources
from .entry import attribute_generation
from .inside import Layers
from .outputs import attribute_outputs
from .result import GenerationAttribution
from .spans import Span

__all__ = [
    "Answer",
    "Contrast",
    "GenerationAttribution",
    "Layers",
    "Predictions",
    "Sources",
    "Span",
    "attribute_generation",
    "attribute_outputs",
]
