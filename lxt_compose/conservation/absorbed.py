"""What a rule is known to keep for itself, by its own formula: the shares of biases, of stabilizers, of softmax.

The formulas are those of the rules' equations, not of their code: sums are taken again, from the values that an
operation was given, when the relevance of its output is there. All that is not known here must be handed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

import torch
from torch import Tensor, nn

from ..autograd.numerics import stabilize
from ..ledger.rows import by_sample
from ..ops import DROPOUTS, Family
from ..rules import (
    RELEVANCE,
    AlphaBeta,
    Attention,
    Epsilon,
    Flat,
    Gamma,
    Identity,
    Norm,
    Pass,
    Ratio,
    ResidualGamma,
    Rule,
    SoftmaxTaylor,
    TaylorDecomposition,
    WSquare,
    ZBox,
    ZPlus,
)
from ..rules.linear_layers.jacobian import layer_of
from ..rules.linear_layers.layer import Layer
from ..rules.linear_layers.weight_parts import negative, positive, square
from ..rules.scaling import Scaling
from ..rules.softmax import softmax_dim
from ..rules.split import Split
from ..rules.taylor_decomposition import linear_part
from .ran import Ran

BIAS, STABILIZER, SOFTMAX, HIGHER_ORDERS = "bias", "stabilizer", "softmax", "higher orders"
Amounts = dict[str, Tensor]
"""Relevance by kind of sink and by sample: ``[samples + 1]`` each, the last one what no sample is known for."""
_AFFINE = (Family.LINEAR, Family.PRODUCT, Family.CONTRACTION, Family.NORMALIZATION)


@singledispatch
def absorbed(rule: Rule, ran: Ran, slot: Tensor) -> Amounts:
    """What a rule keeps of the relevance in a slot of the output, by its equation; nothing, if it is not known here.

    A rule of your own tells its sinks with ``@absorbed.register``, in terms of ``ran.by_sample``.
    """
    return {}


@absorbed.register
def _(rule: Scaling, ran: Ran, slot: Tensor) -> Amounts:
    """``s = R / (z + e sign z)``: a constant part b of z keeps s * b, the stabilizer R - s * z."""
    if getattr(rule, "zero_bias", False):
        z = ran.z - _constant(ran)
        s = ran.relevance(slot) / stabilize(z, rule.epsilon)
        return {STABILIZER: ran.by_sample(ran.relevance(slot) - s * z)}
    s = _scaled(rule, ran, slot)
    stabilizer = ran.by_sample(ran.relevance(slot) - s * ran.z)
    if isinstance(ran.function, nn.Module) and next(ran.function.children(), None) is not None:
        return {BIAS: _biases_of_block(ran, s), STABILIZER: stabilizer}
    return {BIAS: ran.by_sample(s * _constant(ran)), STABILIZER: stabilizer}


@absorbed.register
def _(rule: Attention, ran: Ran, slot: Tensor) -> Amounts:
    """Half of s * z goes the way of the values, the other half to what the expansion of softmax leaves of it."""
    s = _scaled(rule, ran, slot)
    rest = ran.by_sample(s * ran.z) - _expanded(ran, s, rule.shares(ran.call()))
    return {SOFTMAX: rest, STABILIZER: ran.by_sample(ran.relevance(slot) - s * ran.z)}


@absorbed.register
def _(rule: ResidualGamma, ran: Ran, slot: Tensor) -> Amounts:
    """Nothing, if both operands carry relevance; a constant one keeps its share, as under Epsilon."""
    return {} if len(ran.inputs) > 1 else absorbed(Epsilon(0.0), ran, slot)


def _scaled(rule: Scaling, ran: Ran, slot: Tensor) -> Tensor:
    if ran.formulation == RELEVANCE or rule.epsilon:
        return ran.relevance(slot) / stabilize(ran.z, rule.epsilon)
    return slot


def _constant(ran: Ran) -> Tensor:
    """The part of an affine function that does not depend on the carriers: its value where all of them are 0."""
    if ran.op is not None and (ran.op.family not in _AFFINE or ran.op.name in DROPOUTS):
        return ran.z.new_zeros(())
    with torch.no_grad():
        return ran.run([torch.zeros_like(x) for x in ran.carriers])


def _biases_of_block(ran: Ran, s: Tensor) -> Tensor:
    """``sum of b * dz/db`` over the biases inside: with that of the inputs it is z if the block is piecewise linear."""
    found = [(name, p) for name, p in ran.twin().named_parameters() if name.rpartition(".")[2] == "bias"]
    biases = {name: p.detach().clone().requires_grad_() for name, p in found}
    amounts = s.new_zeros(ran.edge.samples + 1, dtype=torch.float64)
    with torch.enable_grad():
        z = ran.run(ran.carriers, biases) if biases else ran.z
    if not z.requires_grad:
        return amounts
    for sample, seed in _by_itself(ran, s):
        slots = torch.autograd.grad(z, list(biases.values()), seed, retain_graph=True, allow_unused=True)
        parts = zip(biases.values(), slots, strict=True)
        amounts[sample] = sum(float((b.detach() * g).sum()) for b, g in parts if g is not None)
    return amounts


def _by_itself(ran: Ran, s: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The slot of each sample, and of what belongs to none, with zeros for all else."""
    layout, samples = ran.edge.layout, ran.edge.samples
    if layout is None or samples == 1:
        yield (0 if samples == 1 else samples), s
        return
    shape = [-1 if dim == layout.dim else 1 for dim in range(s.dim())]
    owner = torch.where(layout.owner < 0, samples, layout.owner).to(s.device).reshape(shape)
    for sample in range(samples + 1):
        yield sample, torch.where(owner == sample, s, 0)


def _expanded(ran: Ran, s: Tensor, shares: list[float]) -> Tensor:
    """``sum over the carriers of share * x * J^T s``, by sample."""
    carriers = ran.carriers
    with torch.enable_grad():
        z = ran.run(carriers)
    slots = torch.autograd.grad(z, carriers, s)
    amounts = s.new_zeros(ran.edge.samples + 1, dtype=torch.float64)
    for x, share, g, edge in zip(carriers, shares, slots, ran.inputs, strict=True):
        relevance = torch.where(g == 0, 0, share * x.detach() * g)  # x is -inf where it is masked
        amounts = amounts + by_sample(relevance, edge.layout, edge.samples)
    return amounts


@absorbed.register
def _(rule: Norm, ran: Ran, slot: Tensor) -> Amounts:
    """As for Epsilon, of what is linear with the statistics held constant; there too f(0) is the bias."""
    s = ran.relevance(slot) / stabilize(ran.z, 0.0) if ran.formulation == RELEVANCE else slot
    bias = ran.by_sample(s * _constant(ran))
    return {BIAS: bias, STABILIZER: ran.by_sample(ran.relevance(slot) - s * ran.z)}


@absorbed.register
def _(rule: SoftmaxTaylor, ran: Ran, slot: Tensor) -> Amounts:
    """``R - x * (R - s * sum R)``."""
    r, x, s = ran.relevance(slot), ran.before.values[0].value.detach(), ran.z
    if ran.op is None or ran.op.name not in ("softmax", "softmin"):
        factor = ran.relevance(slot) / stabilize(s, 0.0) if ran.formulation == RELEVANCE else slot
        return {SOFTMAX: ran.by_sample(r) - _expanded(ran, factor, [1.0])}
    x = -x if ran.op.name == "softmin" else x
    handed_on = x * (r - s * r.sum(softmax_dim(ran.call()), keepdim=True)).to(x.dtype)
    return {SOFTMAX: ran.by_sample(r - torch.where(x.isinf(), 0, handed_on))}


@absorbed.register
def _(rule: Identity, ran: Ran, slot: Tensor) -> Amounts:
    """``R * f(0) / f(x)``, with the slope of the secant ``R - R / f(x) * x * slope``."""
    call = ran.call()
    if rule.idle(call) or (ran.formulation == RELEVANCE and rule.passes_whole(call)):
        return {}  # and an operation in place may have overwritten x
    x, z = call.values[0], ran.z
    factor, saved, has_bias = rule.slope(call, x, z)
    if ran.formulation == RELEVANCE and not has_bias:
        return {}
    r = ran.relevance(slot)
    g = torch.where(z == 0, 0, r / torch.where(z == 0, 1, z)) if ran.formulation == RELEVANCE else slot
    kept = r - (g.reshape(x.shape) * x * factor(*saved)).reshape(z.shape)
    return {BIAS if has_bias else STABILIZER: ran.by_sample(kept)}


@absorbed.register
def _(rule: Pass, ran: Ran, slot: Tensor) -> Amounts:
    """In the gradient formulation ``R - R * x / (x + e sign x)``."""
    if ran.formulation == RELEVANCE:
        return {}
    x = ran.before.values[0].value.detach().reshape(ran.z.shape)
    return {STABILIZER: ran.by_sample(slot * ran.z * (1 - x / stabilize(x, 0.0)))}


@absorbed.register
def _(rule: Ratio, ran: Ran, slot: Tensor) -> Amounts:
    """``R - R * z / (z + e sign z)``, all of R where x is 0."""
    if ran.formulation != RELEVANCE:
        return absorbed.dispatch(Identity)(rule, ran, slot)
    x = ran.before.values[0].value.detach().reshape(ran.z.shape)
    handed_on = torch.where(x == 0, 0, slot * ran.z / stabilize(ran.z, 0.0))
    return {STABILIZER: ran.by_sample(slot - handed_on)}


@absorbed.register
def _(rule: TaylorDecomposition, ran: Ran, slot: Tensor) -> Amounts:
    """With ``s = R / f(x)``: ``s * b`` stays in the bias unless it is distributed, ``s * (f(x) - J x - b)`` is left."""
    r, z, call = ran.relevance(slot), ran.z, ran.call()
    s = r / stabilize(z, rule.epsilon)
    with torch.enable_grad():
        output, points = rule.at_reference(call)
    bias = output.detach() - linear_part(output, points, points)
    rest = z - linear_part(output, points, call.values) - bias
    kept = {BIAS: ran.by_sample(s * bias)} if rule.bias is False else {}
    return {**kept, HIGHER_ORDERS: ran.by_sample(s * rest), STABILIZER: ran.by_sample(r - s * z)}


# ---- split rules: shares a of R over denominators D, in which the bias is B ------------------------------------------

Term = tuple[float, Tensor, Tensor]


@absorbed.register
def _(rule: Split, ran: Ran, slot: Tensor) -> Amounts:
    """``sum of a * R * B / D`` stays in the bias, ``sum of a * R * (1 - D / stabilized D)`` in the stabilizer."""
    call = ran.call()
    layer = layer_of(rule, call, ran.z)
    wide = layer.dtype
    x, z, r = call.values[0].to(wide), ran.z.to(wide), ran.relevance(slot).to(wide)
    bias = z.new_zeros(()) if layer.offset is None else layer.offset.to(wide)
    in_bias, in_stabilizer = torch.zeros_like(z), torch.zeros_like(z)
    for share, denominator, added in terms(rule, layer, x, z - bias, bias):
        s = share * r / stabilize(denominator, getattr(rule, "epsilon", 0.0))
        in_bias += s * added
        in_stabilizer += share * r - s * denominator
    return {BIAS: ran.by_sample(in_bias), STABILIZER: ran.by_sample(in_stabilizer)}


def _sums(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the positive and of the negative contributions to each output."""
    up, down = x.clamp(min=0), x.clamp(max=0)
    above = layer.product(up, positive) + layer.product(down, negative)
    return above, layer.product(up, negative) + layer.product(down, positive)


@singledispatch
def terms(rule: Split, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
    """The terms of a split rule: ``R_i = sum over terms of a * (a part of c_ij) / D_j * R_j``; z has no bias in it."""
    return []  # not known


@terms.register
def _(rule: Gamma, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
    above, below = _sums(layer, x)
    bias = torch.zeros_like(bias) if rule.zero_bias else bias
    up = z + bias >= 0
    added = bias + rule.gamma * torch.where(up, bias.clamp(min=0), bias.clamp(max=0))
    return [(1.0, z + rule.gamma * torch.where(up, above, below) + added, added)]


@terms.register
def _(rule: AlphaBeta, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
    bias = torch.zeros_like(bias) if rule.zero_bias else bias
    (above, below), up, down = _sums(layer, x), bias.clamp(min=0), bias.clamp(max=0)
    return [(rule.alpha, above + up, up), (-rule.beta, below + down, down)]


@terms.register
def _(rule: ZPlus, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
    added = torch.zeros_like(bias) if rule.zero_bias else bias.clamp(min=0)
    return [(1.0, _sums(layer, x)[0] + added, added)]


@terms.register
def _(rule: ZBox, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
    low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (rule.low, rule.high))
    least = layer.of_constant(low, positive, x) + layer.of_constant(high, negative, x)
    return [(1.0, z - least, torch.zeros_like(bias))]


@terms.register
def _(rule: WSquare, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
    added = torch.zeros_like(bias) if rule.zero_bias else bias.square()
    return [(1.0, layer.of_constant(1.0, square, x) + added, added)]


@terms.register
def _(rule: Flat, layer: Layer, x: Tensor, z: Tensor, bias: Tensor) -> list[Term]:
    return [(1.0, layer.of_constant(1.0, layer.unit, x), torch.zeros_like(bias))]
