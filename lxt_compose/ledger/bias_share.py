"""What part of an output's relevance the bias of a layer keeps under the rules that split contributions by sign."""

from __future__ import annotations

import torch
from torch import Tensor

from ..autograd.numerics import over_positive, over_stabilized
from ..rules import AlphaBeta, Flat, Gamma, Rule, WSquare, ZBox, ZPlus
from ..rules.linear_layers.layer import Layer
from ..rules.linear_layers.weight_parts import absolute, negative, positive, square

KNOWN_SPLITS = (Gamma, AlphaBeta, ZPlus, WSquare)
"""The rules whose bias is told apart from their stabilizer by its formula."""


def counts_bias(rule: Rule) -> bool:
    """Whether a rule gives the bias of a layer its share."""
    return not (isinstance(rule, (ZBox, Flat)) or getattr(rule, "zero_bias", False))


def bias_share(rule: Rule, layer: Layer, x: Tensor, z: Tensor) -> Tensor:
    """What the bias contributes to the denominator of a rule, over that denominator as it is stabilized.

    ``(b + gamma b^s) / (z + gamma z^s)`` for Gamma, with s the sign of z; ``alpha b^+ / z^+ - beta b^- / z^-`` for
    AlphaBeta; ``b^2 / (sum w^2 + b^2)`` for WSquare.

    Args:
        rule: one of :data:`KNOWN_SPLITS`.
        layer: the layer, which has a bias.
        x: its input.
        z: its output.
    """
    assert layer.offset is not None
    b = layer.offset.to(z.dtype)
    if isinstance(rule, WSquare):
        squared = b.square()
        return over_stabilized(squared, layer.of_constant(1.0, square, x) + squared, rule.epsilon)
    if isinstance(rule, Gamma):
        size = layer.product(x.abs(), absolute, absolute)
        sign = torch.copysign(torch.ones_like(z), z)
        same = b * sign >= 0
        total = (1 + rule.gamma / 2) * z.abs() + rule.gamma / 2 * size
        return over_positive(sign * b * (1 + rule.gamma * same), total, rule.epsilon)
    assert isinstance(rule, (AlphaBeta, ZPlus))
    alpha, beta = (1.0, 0.0) if isinstance(rule, ZPlus) else (rule.alpha, rule.beta)
    up, down = x.clamp(min=0), x.clamp(max=0)
    above = layer.product(up, positive, positive) + layer.product(down, negative)
    share = alpha * over_positive(b.clamp(min=0).expand(z.shape), above, rule.epsilon)
    if beta:
        below = layer.product(up, negative, negative) + layer.product(down, positive)
        share = share - beta * over_positive(-b.clamp(max=0).expand(z.shape), -below, rule.epsilon)
    return share
