"""Attribution: the relevance of a model's inputs and layers for what is explained of its output."""

from .entry import attribute
from .explained import Explained
from .latent import Neuron, blocks
from .result import Attribution
from .run import composite_of
from .traced import TracedAttribution

__all__ = ["Attribution", "Explained", "Neuron", "TracedAttribution", "attribute", "blocks", "composite_of"]
