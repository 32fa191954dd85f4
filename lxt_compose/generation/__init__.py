"""From a model and a prompt to the reasons for its whole answer."""

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
