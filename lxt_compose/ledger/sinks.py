"""Where relevance goes that an operation does not hand on: the kinds of sinks, and how each is told from the others.

All that an operation absorbs is what arrives less what leaves. A part of it may be known by a formula (a stabilizer's,
say); the rest is of the kind that this operation has. So the kinds of an operation always add up to what it absorbs.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..autograd.functions import Damp, OverOutput, Rebind
from ..autograd.numerics import componentwise, over_stabilized
from ..autograd.saved_values import Kept, keep
from ..coverage.rows import Status
from ..ops import Family
from ..rules import GRADIENT, Identity, Norm, Rule, SoftmaxTaylor
from ..rules.epsilon import through_layer
from ..rules.identity import ElementwiseRule
from ..rules.linear_layers.layer import LAYER_TYPES, Layer
from ..rules.split import Split
from .bias_share import KNOWN_SPLITS, bias_share, counts_bias
from .journal import Row
from .meters import Edge, Reader
from .rows import row_of

if TYPE_CHECKING:
    from .accounts import Operation


BIAS, CONSTANT, SOFTMAX, STABILIZER = "bias", "constant", "softmax", "stabilizer"
NORM, RULE, UNCOVERED = "norm", "rule", "uncovered"
KINDS = {
    BIAS: "biases of layers, which keep their share of the output; of activations, f(0)",
    CONSTANT: "tensors and numbers without relevance that are added or put in: positions, class tokens, padding",
    SOFTMAX: "what the expansion of softmax leaves over, in attention as well",
    STABILIZER: "epsilon in denominators",
    NORM: "statistics of normalizations: the mean that a batch norm takes off",
    RULE: "what a rule changes by itself: a block that is not linear under Epsilon, a rule that does not conserve",
    UNCOVERED: "operations that no rule covers: what the plain gradient loses or makes there",
}
_WITH_BIAS = frozenset({"linear", "bilinear", "addmm"}) | {
    f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)
}
_PLACE_OF_BIAS = {"layer_norm": 3, "group_norm": 3, "instance_norm": 4, "batch_norm": 4, "native_batch_norm": 2}
_PER_CHANNEL = frozenset({"group_norm", "instance_norm", "batch_norm", "native_batch_norm"})


def rest_of(operation: Operation) -> str:
    """The kind of what an operation absorbs beyond what is known by a formula."""
    rule, op, status = operation.rule, operation.op, operation.status
    if status is Status.UNCOVERED:
        return UNCOVERED
    if rule is None:
        return CONSTANT if status is Status.EXACT else RULE
    if isinstance(operation.function, nn.Module):
        return _rest_of_module(operation.function, rule)
    if op is None:
        return RULE
    if isinstance(rule, SoftmaxTaylor) or op.family in (Family.SOFTMAX, Family.ATTENTION):
        return SOFTMAX
    if isinstance(rule, Norm) or op.name in _PLACE_OF_BIAS:
        return NORM
    if op.name in _WITH_BIAS and not isinstance(rule, KNOWN_SPLITS) and counts_bias(rule):
        place, name = {"addmm": (0, "input"), "bilinear": (3, "bias")}.get(op.name, (2, "bias"))
        return BIAS if _argument(operation, place, name) is not None else STABILIZER
    if isinstance(rule, Split) or op.name in _WITH_BIAS:
        return STABILIZER
    if op.family in (Family.LINEAR, Family.MOVEMENT):
        return CONSTANT
    if isinstance(rule, Identity) and not rule.zero_bias:
        return BIAS
    return STABILIZER if status is Status.DEFAULT or isinstance(rule, ElementwiseRule) else RULE


def _rest_of_module(module: nn.Module, rule: Rule) -> str:
    if isinstance(rule, Identity) and not rule.zero_bias:
        return BIAS
    if isinstance(rule, (ElementwiseRule, Split)):
        return STABILIZER
    if isinstance(module, LAYER_TYPES):
        return STABILIZER if module.bias is None or not counts_bias(rule) else BIAS
    return RULE


def _argument(operation: Operation, place: int, name: str) -> Any:
    return operation.args[place] if len(operation.args) > place else operation.kwargs.get(name)


def sinks_of(operation: Operation, formulation: str, node: Any, z: Tensor, edge: Edge) -> list[tuple[str, Reader]]:
    """What is absorbed at an output z by formula: kinds, each with a function of the slot that gives the amount.

    Args:
        operation: what made z.
        formulation: what slots carry.
        node: the autograd node of z.
        z: an output.
        edge: where its relevance is booked.
    """
    found = []
    scaled = _scaled(node)
    if scaled is not None:
        found.append((STABILIZER, _of_stabilizer(scaled, edge.keep(z), edge)))
    rule, op = operation.rule, operation.op
    if rule is None or not counts_bias(rule):
        return found
    if op is not None and op.name in _PLACE_OF_BIAS:
        bias = _bias_of(operation, z)
        if bias is not None:
            kept = None if formulation == GRADIENT else edge.keep(z)
            found.append((BIAS, _of_bias(bias, kept, getattr(rule, "epsilon", 1e-6), edge)))
    layer = _split_layer(node)
    if layer is not None and layer.offset is not None and isinstance(rule, KNOWN_SPLITS):
        x = keep(operation.carriers[0][0])
        found.append((BIAS, _of_split(rule, layer, x, edge.keep(z), formulation == GRADIENT, edge)))
    return found


def _split_layer(node: Any) -> Layer | None:
    """The layer that a split rule works on at this node, if it is one of such a rule's."""
    slots = getattr(node, "slots", None)
    given = slots.args[0] if isinstance(slots, partial) and slots.args else None
    return given if isinstance(given, Layer) else None


def _of_split(rule: Rule, layer: Layer, x: Kept, z: Kept, gradient: bool, edge: Edge) -> Reader:
    """``R`` times the part that the bias has in the denominators of a split rule."""

    def read(slot: Tensor) -> Row:
        inputs, outputs = x.value.to(layer.dtype), z.value.to(layer.dtype)
        relevance = slot.to(layer.dtype)
        share = bias_share(rule, layer, inputs, outputs)
        return row_of((relevance * outputs if gradient else relevance) * share, edge.layout, edge.samples)

    return read


def _scaled(node: Any) -> tuple[Any, Any] | None:
    """The function of a scaling rule at an output and its epsilon, if there is one; behind a change in place."""
    if getattr(type(node), "_forward_cls", None) is Rebind:
        node = node.next_functions[1][0]
    function, slots = getattr(type(node), "_forward_cls", None), getattr(node, "slots", None)
    if function in (OverOutput, Damp):
        return function, node.epsilon
    if isinstance(slots, partial) and slots.func is through_layer and not slots.args[2]:
        return OverOutput, slots.args[1]  # the layer's gradient and the division in one node
    return None


def _of_stabilizer(scaled: tuple[Any, Any], kept: Kept, edge: Edge) -> Reader:
    """``R - R * z / (z + epsilon sign z)``, with the denominator as the rule itself computes it."""
    function, epsilon = scaled

    def read(slot: Tensor) -> Row:
        # The node's own saved tensors are not asked for: a checkpoint gives them out once.
        z = kept.value
        passed = function.backward(SimpleNamespace(epsilon=epsilon, share=1, saved_tensors=(z,)), slot)[0]
        if function is OverOutput:
            lost = slot - componentwise(torch.mul, passed, z)
        else:
            lost = componentwise(torch.mul, slot - passed, z)
        if lost.is_complex():
            lost = torch.view_as_real(lost).sum(-1)
        return row_of(lost, edge.layout, edge.samples)

    return read


def _bias_of(operation: Operation, z: Tensor) -> Tensor | None:
    """The bias of a normalization, in a shape that broadcasts to its output."""
    assert operation.op is not None
    given = _argument(operation, _PLACE_OF_BIAS[operation.op.name], "bias")
    if not isinstance(given, Tensor) or given.requires_grad:
        return None
    per_channel = operation.op.name in _PER_CHANNEL
    return given.detach().reshape(-1, *[1] * (z.dim() - 2)) if per_channel else given.detach()


def _of_bias(bias: Tensor, kept: Kept | None, epsilon: Any, edge: Edge) -> Reader:
    """``R * b / z`` where slots carry relevance, ``g * b`` where they carry gradients."""

    def read(slot: Tensor) -> Row:
        share = slot if kept is None else over_stabilized(slot, kept.value, epsilon)
        return row_of(share * bias, edge.layout, edge.samples)

    return read
