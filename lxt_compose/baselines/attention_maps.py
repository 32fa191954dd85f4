"""Attention weights of any transformer, read while it runs, whatever function computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..attribution.inputs import Inputs
from ..attribution.logits import last_real
from ..ops import op_of
from ..torch_internals.attention import attention_body
from .points import Points, Values, unmoved

Map = tuple[Tensor, Tensor | None]
"""The weights of one layer [m, heads, tokens, tokens], and the gradient of the explained number there."""


class Watch(TorchFunctionMode):
    """Notes the weights of self-attention; torch's fused attention is computed step by step instead."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function; the mode is off meanwhile."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return attention_body()(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        output = func(*args, **kwargs)
        op = op_of(func)
        if op is not None and op.traits.softmax_sign == 1:
            self._note(output)
        return output

    def _note(self, weights: Tensor) -> None:
        square = weights.dim() in (3, 4) and weights.shape[-1] == weights.shape[-2] > 1
        if square and weights.requires_grad:
            self.maps.append(weights)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Return ``softmax(Q K^T * scale + mask) V``, the arguments those of ``F.scaled_dot_product_attention``."""
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, -torch.inf)
            else:
                scores = scores + attn_mask
        lost = (scores == -torch.inf).all(-1, keepdim=True)  # rows without any key, to which torch gives zeros
        weights = torch.softmax(scores.masked_fill(lost, 0), -1).masked_fill(lost, 0)
        self._note(weights)
        return F.dropout(weights, dropout_p, training=dropout_p > 0) @ value


def attention_maps(points: Points, *, gradients: bool) -> Iterator[tuple[Inputs, list[Map]]]:
    """Yield for each batch its inputs, and the attention maps from the first layer to the last.

    Raises:
        ValueError: there is no self-attention, it is not over all tokens at once, or no input is in all of it.
    """
    watch = Watch()

    def fresh() -> Watch:
        watch.maps.clear()
        return watch

    for given, leaves, outputs, seeds in points.passes(unmoved, fresh):
        maps = watch.maps
        if not maps:
            raise ValueError(
                f"no self-attention was met in {type(points.model).__name__}: no softmax over a square of two or more "
                f"tokens"
            )
        sizes = {weights.shape[-1] for weights in maps}
        if len(sizes) > 1 or any(weights.shape[0] % given.count for weights in maps):
            raise ValueError(
                f"attention in {type(points.model).__name__} is not over all tokens at once (sizes {sorted(sizes)}), "
                f"so it has no rollout"
            )
        if not _share_an_input(leaves, maps):
            raise ValueError(
                f"attention in {type(points.model).__name__} is over several inputs, each with tokens of its own "
                f"({', '.join(dict.fromkeys(name for name, _ in leaves))}), so it has no rollout"
            )
        slots = torch.autograd.grad(outputs, maps, seeds, allow_unused=True) if gradients else [None] * len(maps)
        size = sizes.pop()
        found: list[Map] = []
        for weights, slot in zip(maps, slots, strict=True):
            shape = (given.count, -1, size, size)
            slot = torch.zeros_like(weights) if slot is None and gradients else slot
            found.append((_kept(weights.detach(), shape), None if slot is None else _kept(slot, shape)))
        yield given, found


def _share_an_input(leaves: Values, maps: list[Tensor]) -> bool:
    """Return whether there is an input that every map depends on; a single input is taken as one."""
    names = {name for name, _ in leaves}
    if len(names) < 2:
        return True
    for weights in maps:
        slots = torch.autograd.grad(weights.sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
        names &= {name for (name, _), slot in zip(leaves, slots, strict=True) if slot is not None}
    return bool(names)


def _kept(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor on the CPU, in at least 32 bits: a product over layers follows."""
    return values.reshape(shape).cpu().to(torch.promote_types(values.dtype, torch.float32))


def read_rows(product: Tensor, read: str | int, maps: list[Tensor], mask: Tensor | None) -> Tensor:
    """Return one row of each sample's product [n, tokens, tokens]: that of the token that the output is read from.

    Raises:
        ValueError: `read` is unknown or out of range.
    """
    n, size = len(product), product.shape[-1]
    if read == "auto":
        causal = all(bool((weights.triu(1) == 0).all()) for weights in maps)
        read = "last" if causal else "first"
    if read == "mean":
        return product.mean(1)
    if read == "last":
        return product[torch.arange(n), last_real(mask, n, size)]
    position = 0 if read == "first" else read
    if isinstance(position, bool) or not isinstance(position, int) or not -size <= position < size:
        raise ValueError(f"read must be 'auto', 'first', 'last', 'mean' or a position below {size}, got {read!r}")
    return product[:, position]
