"""The inside of a model on a page: tokens by layer and heads by layer, the strongest of each row."""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor

from .inside import Layers
from .page_grids import floats

_TOKENS, _HEADS = 400_000, 300_000
"""About the most numbers of tokens, and of tokens by heads, on a page."""
_FEW, _OF_HEADS = 4, 6


def inside_data(layers: Layers, owner: Tensor, groups: Tensor) -> dict[str, Any]:
    """Return the relevance of pieces in each layer, and of each head by pieces.

    The strongest pieces of each layer of a row are kept, and the strongest few of each head.

    Args:
        layers: the relevance of tokens.
        owner: the number of the piece that each token belongs to.
        groups: which rows of the answer each row of the page adds up, [rows of the page, rows].
    """
    tokens = _on_pieces(torch.einsum("pr,rlt->plt", groups, layers.tokens.double()), owner)
    rows, depth, pieces = tokens.shape
    kept = max(_FEW, min(pieces, _TOKENS // (rows * depth)))
    found: dict[str, Any] = {"names": list(layers.names), "tokens": _strongest(tokens, min(kept, pieces))}
    if layers.heads is not None:
        heads = _on_pieces(torch.einsum("pr,rlht->plht", groups, layers.heads.double()), owner)
        count = heads.shape[2]
        kept = max(1, min(_OF_HEADS, pieces, _HEADS // (rows * depth * count)))
        found |= {"heads": count, "sums": floats(heads.sum(-1)), "from": _strongest(heads, kept)}
    return found


def _on_pieces(values: Tensor, owner: Tensor) -> Tensor:
    """Return values [..., tokens] added up for each piece."""
    found = values.new_zeros(*values.shape[:-1], int(owner.max()) + 1)
    return found.index_add_(-1, owner, values)


def _strongest(values: Tensor, kept: int) -> dict[str, Any]:
    """Return the numbers of most absolute value in the last dimension, with their places."""
    order = values.abs().topk(kept, -1).indices
    places = order.to(torch.int64).numpy().astype("<u2" if values.shape[-1] < 2**16 else "<u4")
    return {
        "kept": kept,
        "wide": places.dtype.itemsize,
        "index": base64.b64encode(places.tobytes()).decode("ascii"),
        "value": floats(values.gather(-1, order)),
    }
