"""Pictures of relevance: text, images, series, bars, layer by token; red speaks for what is explained, blue against."""

from .bars import BarsHeatmap, bars
from .graphs import GraphHeatmap, graph
from .grids import ImageGrid, image_grid
from .images import ImageHeatmap, image
from .picture import Picture, page
from .series import SeriesHeatmap, series
from .several import Several, several
from .texts import TextHeatmap, text
from .tokens import Piece, guess_scheme, pieces_of, scheme_of, words_of
from .traces import TraceHeatmap, trace

__all__ = [
    "BarsHeatmap",
    "GraphHeatmap",
    "ImageGrid",
    "ImageHeatmap",
    "Picture",
    "Piece",
    "SeriesHeatmap",
    "Several",
    "TextHeatmap",
    "TraceHeatmap",
    "bars",
    "graph",
    "guess_scheme",
    "image",
    "image_grid",
    "page",
    "pieces_of",
    "scheme_of",
    "series",
    "several",
    "text",
    "trace",
    "words_of",
]
