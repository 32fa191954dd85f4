"""From a model and an input to an answer."""

from .latent import Neuron, blocks
from .result import Attribution
from .run import attribute, composite_of

__all__ = ["Attribution", "Neuron", "attribute", "blocks", "composite_of"]
