"""The model's predictions at each place of an answer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..heatmap.tokens import bytes_of, scheme_of
from .answer import Predictions


def predictions_of(logits: Tensor, ids: Tensor, top: int, tokenizer: Any) -> Predictions:
    """Return the predictions of logits [T, classes]."""
    shares = logits.double().softmax(-1)
    best = shares.topk(min(top, shares.shape[1]))
    own = logits.gather(1, ids[:, None])
    named = {token: _named(token, tokenizer) for token in {*ids.tolist(), *best.indices.flatten().tolist()}}
    return Predictions(
        own[:, 0],
        shares.gather(1, ids[:, None])[:, 0],
        (logits > own).sum(1),
        best.indices,
        best.values,
        tuple(tuple(named[token] for token in row) for row in best.indices.tolist()),
        tuple(named[token] for token in ids.tolist()),
    )


def _named(token: int, tokenizer: Any) -> str:
    """Return the text of a token, or its bytes where they are only a part of a character."""
    if tokenizer is None:
        return str(token)
    text = str(tokenizer.decode([token]))
    if text and "\ufffd" not in text:
        return text
    name = str(tokenizer.convert_ids_to_tokens([token])[0])
    return "".join(f"<0x{byte:02X}>" for byte in bytes_of(name, scheme_of(tokenizer) or "bytes")) or name
