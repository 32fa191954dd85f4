"""How many rows of cotangents fit into memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attribution.inputs import Inputs

BUDGET = 2**27
"""Bytes on a CPU, where rows that leave its caches cost more each; on a GPU it is half of what is free."""
_LIVE = 6
"""About how many tensors of the largest size are alive at once in a backward pass: gates, their inputs, sums."""

AT_A_PLACE = 256
"""About how many numbers of an image or a sound become one token: a small patch, or two steps of a spectrogram."""


def rows_that_fit(model: nn.Module, given: Inputs, values: Tensor, budget: int | None = None) -> int:
    """Return how many rows to run at a time, from 1 on.

    A row takes about six tensors of tokens by the widest layer, and where attention writes its weights out, three of
    heads by tokens by tokens.

    Args:
        model: the model.
        given: its inputs, one sequence.
        values: what is explained, for dtype and device.
        budget: bytes; by default 128 MiB on a CPU, and half of what is free on a GPU.
    """
    if budget is None:
        budget = BUDGET
        if values.device.type == "cuda":
            budget = torch.cuda.mem_get_info(values.device)[0] // 2
    return max(1, budget // bytes_of_row(model, given, values))


def bytes_of_row(model: nn.Module, given: Inputs, values: Tensor) -> int:
    """Return about how many bytes the cotangents of one row take."""
    length = max(
        *(x.shape[-1] for x in given.ids.values()), *(x.numel() // AT_A_PLACE for x in given.carriers.values()), 1
    )
    widths = [max(p.shape) for p in weights_of(model)]
    config = getattr(model, "config", None)
    numbers = _LIVE * length * max(widths, default=1)
    if getattr(config, "_attn_implementation", "sdpa") == "eager":
        numbers += 3 * int(getattr(config, "num_attention_heads", 1) or 1) * length * length
    numbers += _LIVE * sum(x.numel() for x in given.carriers.values())
    return int(numbers * values.element_size())


def weights_of(model: nn.Module) -> list[Tensor]:
    """Return the matrices that tokens are multiplied by, without those of tables and of the layer that makes logits."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    layers = (module for module in model.modules() if module is not head and not isinstance(module, nn.Embedding))
    return [p for module in layers for p in module.parameters(recurse=False) if p.dim() == 2]
