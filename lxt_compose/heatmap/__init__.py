"""Pictures of relevance: text, images, and layer by token; red speaks for what is explained, blue against it."""

from .images import ImageHeatmap, image
from .picture import Picture, page
from .texts import TextHeatmap, text
from .tokens import Piece, guess_scheme, pieces_of, scheme_of, words_of
from .traces import TraceHeatmap, trace

__all__ = [
    "ImageHeatmap",
    "Picture",
    "Piece",
    "TextHeatmap",
    "TraceHeatmap",
    "guess_scheme",
    "image",
    "page",
    "pieces_of",
    "scheme_of",
    "text",
    "trace",
    "words_of",
]
