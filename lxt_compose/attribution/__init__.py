"""From a model and an input to an answer."""

from .entry import attribute
from .latent import Neuron, blocks
from .result import Attribution
from .run import composite_of
from .traced import Explained, TracedAttribution

__all__ = ["Attribution", "Explained", "Neuron", "TracedAttribution", "attribute", "blocks", "composite_of"]
