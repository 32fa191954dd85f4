"""LRP as an explanation function for the metrics of Quantus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..attribution import attribute
from ..composite import Composite

if TYPE_CHECKING:
    from numpy import ndarray


def quantus_explain(composite: str | Composite = "attnlrp", **options: Any) -> Callable[..., ndarray[Any, Any]]:
    """Return an ``explain_func(model, inputs, targets, **kwargs)`` for the metrics of Quantus.

    It takes arrays, runs on the model's own device, and returns the relevance summed over channels: [n, 1, height,
    width] for images [n, channels, height, width], [n, 1, time] for series, [n, features] for tables. Further arguments
    from Quantus are ignored.

    Args:
        composite: the name of a preset, or a :class:`Composite`.
        options: of :func:`attribute`, such as ``batch_size`` or ``traced="auto"``.
    """

    def explain(model: nn.Module, inputs: Any, targets: Any = None, **_: Any) -> ndarray[Any, Any]:
        like = next(iter((*model.parameters(), *model.buffers())), torch.zeros(()))
        x = torch.as_tensor(inputs).to(like.device, like.dtype if like.is_floating_point() else torch.float32)
        target = None if targets is None else torch.as_tensor(targets).long().reshape(-1).cpu()
        relevance = attribute(model, x, target=target, composite=composite, **options).relevance
        assert not isinstance(relevance, dict)  # there is one input
        return (relevance.sum(1, keepdim=True) if relevance.dim() > 2 else relevance).numpy()

    return explain
