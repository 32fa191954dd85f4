"""What the bias and the stabilizer keep under a split rule that gives `pull` and no `terms`.

The layer is given one input more for each output, of value 1, whose weight is that output's bias. The relevance that
the rule gives to it is what the bias keeps. The stabilizer keeps what further such inputs, with large weights, would
get: beside them no denominator is small, so a rule that conserves relevance hands on all of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..errors import RuleError
from .linear_layers.layer import Layer
from .linear_layers.weight_parts import Parts, absolute, whole

_LARGE = 1e6


class Pulls(Protocol):
    """A split rule."""

    def pull(self, layer: Layer, r: Tensor, x: Tensor, z: Tensor, relevance: bool) -> Tensor:
        """See :meth:`Split.pull`."""


def in_bias(rule: Pulls, layer: Layer, r: Tensor, x: Tensor) -> Tensor:
    """Return the relevance that the bias of a layer keeps at each output.

    Args:
        rule: the rule.
        layer: the layer, with a bias.
        r: the relevance of its output.
        x: its input.
    """
    bias = _bias(layer, r)
    if bias is None or not _counts_bias(rule, layer, r, x, bias):
        return torch.zeros_like(r)
    _, extra = _pulled(rule, layer, r.double(), x.double(), [bias])
    return extra[0].to(r.dtype)


def in_stabilizer(rule: Pulls, layer: Layer, r: Tensor, x: Tensor) -> Tensor:
    """Return the relevance that the stabilizer of a rule keeps at each output; arguments as for :func:`in_bias`.

    Raises:
        RuleError: the rule's `pull` cannot be differentiated in its relevance.
    """
    bias = _bias(layer, r)
    own = [] if bias is None or not _counts_bias(rule, layer, r, x, bias) else [bias]
    z = layer.product(x, whole).double() + sum(own, torch.zeros_like(r, dtype=torch.float64))
    size = _LARGE * (1 + layer.product(x.abs(), absolute).double() + sum((b.abs() for b in own), torch.zeros_like(z)))
    large = torch.where(z >= 0, size, -size)
    return (_handed_on(rule, layer, r, x, [*own, large, -large / 2]) - _handed_on(rule, layer, r, x, own)).to(r.dtype)


def _bias(layer: Layer, r: Tensor) -> Tensor | None:
    return None if layer.offset is None else layer.offset.double().expand(r.shape)


def _counts_bias(rule: Pulls, layer: Layer, r: Tensor, x: Tensor, bias: Tensor) -> bool:
    """Return whether the bias takes part: whether inputs get what they get with the bias as one more input."""
    z = layer.product(x, whole, whole)
    with torch.no_grad():
        found = rule.pull(layer, r.clone(), x, z, True).double()
        beside, _ = _pulled(rule, layer, r.double(), x.double(), [bias])
        alone, _ = _pulled(rule, layer, r.double(), x.double(), [])
    return _is_close(found, beside) or not _is_close(found, alone)


def _is_close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def _handed_on(rule: Pulls, layer: Layer, r: Tensor, x: Tensor, weights: list[Tensor]) -> Tensor:
    """Return the relevance that each output hands on; found by differentiation, since a rule is linear in relevance."""
    with torch.enable_grad():
        relevance = r.detach().double().clone().requires_grad_()
        inputs, extra = _pulled(rule, layer, relevance, x.double(), weights)
        total = inputs.sum() + sum(part.sum() for part in extra)
    if not total.requires_grad:
        raise RuleError(f"{rule} has a pull() that cannot be differentiated in r; give it terms() or absorbed() too")
    return torch.autograd.grad(total, relevance)[0] * relevance.detach()


def _pulled(
    rule: Pulls, layer: Layer, r: Tensor, x: Tensor, weights: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the relevance of the inputs, and that of the added inputs, for each weight in the shape of the output."""
    wide = _widened(layer, x, weights)
    ones = x.new_ones(sum(weight.numel() for weight in weights))
    given = torch.cat([x.flatten(), ones])
    z = wide.product(given, whole)
    found = rule.pull(wide, r, given, z, True)
    extra = found[x.numel() :].split([weight.numel() for weight in weights]) if weights else ()
    return found[: x.numel()].reshape(x.shape), tuple(part.reshape(z.shape) for part in extra)


def _widened(layer: Layer, x: Tensor, weights: list[Tensor]) -> Layer:
    """Return the layer without its bias, on one flat input, with one added input at each output for each weight."""
    own, count, inputs = layer.weight.detach(), layer.weight.numel(), x.numel()
    flat = torch.cat([own.double().flatten(), *(weight.flatten() for weight in weights)])

    def apply(x_: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
        z = layer.apply(x_[:inputs].reshape(x.shape), weight[:count].reshape(own.shape), None)
        added = (x_[inputs:] * weight[count:]).reshape(len(weights), *z.shape)
        return z + added.sum(0)

    def back(s: Tensor, weight: Tensor, _: Tensor) -> Tensor:
        part = weight[:count].reshape(own.shape)
        if layer.back is not None:
            slot = layer.back(s, part, x)
        else:
            with torch.enable_grad():
                zeros = torch.zeros_like(x, requires_grad=True)
                z = layer.apply(zeros, part, None)
                slot = torch.autograd.grad(z, zeros, s, create_graph=s.requires_grad)[0]
        extra = weight[count:].reshape(len(weights), *s.shape) * s
        return torch.cat([slot.flatten(), extra.flatten()])

    return replace(
        layer, parts=Parts(), weight=flat, version=flat._version, apply=apply, back=back, bias=None, offset=None,
        one_sample=(inputs + len(flat) - count,), samples=False, made_in=None,
    )  # fmt: skip
