"""One step of a chain of elementwise operations (`chains.py`): the rule that it needs, and the chain of its output."""

from __future__ import annotations

from math import isfinite
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..autograd.marks import Gate, History, gate_of
from ..autograd.nodes import origin_of
from ..ops import Family, Op
from ..ops.slopes import curve_of
from ..rules import Epsilon, Identity, OpCall, Rule
from ..rules.chained import Anchor, Chained
from ..rules.gated import gates_among
from ..torch_internals.readings import number_in
from .chains import Base, Chain, Conditions, source_of
from .curves import POINTS, Curve, Function

_IDENTITY = Identity()
SUM = Epsilon(0.0)
"""The rule for sums that hand on all of their relevance."""


class Step(NamedTuple):
    """What a call does to chains.

    Attributes:
        chain: that of its output.
        rule: the rule that it needs instead of the default one, if it does.
        anchor: what :class:`Chained` hands relevance to.
        held: the places among the carriers of the factors that get nothing.
        divides: whether a number is divided by the only carrier.
        first: whether it is the first step of a chain, of which all is known by the operation.
        near: its output as a function of the base of all of its carriers, if that is no multiple of the source.
        served: whether its rule goes before one around, which would have served the operation.
        whole: whether all relevance passes, as it does under the default rule, to rounding.
        chooses: whether it chooses among elements, as ``where(x > 0, x, 0)`` does, which is an activation.
    """

    chain: Chain
    rule: Rule | None = None
    anchor: Anchor | None = None
    held: tuple[int, ...] = ()
    divides: bool = False
    first: bool = False
    near: Curve | None = None
    served: bool = False
    whole: bool = False
    chooses: bool = False

    def beside_streams(self, *, served: bool) -> Step:
        """Return the step where a rule shares relevance among streams: that rule stays if all relevance passes."""
        return self._replace(rule=None if self.whole or self.rule == SUM else self.rule, served=served)

    @property
    def shown(self) -> Rule | None:
        """The rule as the report calls it."""
        return SUM if self.whole else _IDENTITY if isinstance(self.rule, Chained) else self.rule

    def prepare(self, call: OpCall) -> None:
        """Write down in the call which tensor the rule hands relevance to."""
        call.kept = self.anchor
        if isinstance(self.rule, Chained) and call.op is not None and call.op.multiplies:
            call.shares = [float(not gate) for gate in gates_among(call, Gate.OPENS)]  # gates are no factors
        if self.held:
            gates = [Gate.OPENS if place in self.held else Gate.NONE for place in range(len(call.histories))]
            call.histories = [known._replace(gate=gate) for known, gate in zip(call.histories, gates, strict=True)]

    def history(self, known: History, carriers: int) -> History:
        """Return what is known of the output as a gate; `known` is what the operation alone says of it.

        A number over a tensor scales what it multiplies, as divisors do.
        """
        chooses = self.chooses and not self.chain.curve.is_affine
        if self.first and not chooses:
            return known
        values = self.chain.curve.inputs
        if self.divides:
            return known._replace(gate=Gate.OPENS, values=values)
        gate = gate_of(values) if self.chain.active and not self.chain.curve.is_affine else Gate.NONE
        if self.near is not None and not self.near.is_affine and gate_of(self.near.inputs) > gate:
            values = self.near.inputs
            gate = gate_of(values)
        if gate <= known.gate or (gate is Gate.ACTIVATION and carriers == 1 and not chooses):
            return known
        return known._replace(gate=gate, values=values)


class Thread(Protocol):
    """What is known of the thread in which a call runs."""

    @property
    def conditions(self) -> Conditions:
        """The comparisons that have run."""


class How(NamedTuple):
    """How a call runs.

    Attributes:
        relevance: the formulation is that of relevance.
        stabilized: default rules of sums have a stabilizer.
        thread: where it runs.
        target: what the call changes in place.
    """

    relevance: bool
    stabilized: bool
    thread: Thread
    target: Tensor | None = None

    @property
    def conditions(self) -> Conditions:
        """The comparisons that have run."""
        return self.thread.conditions

    def find(self, x: Tensor, checkpoint: Any, tensor: Tensor) -> Curve | float | None:
        """Return what a comparison is as a function of the source of x, and the number of another constant; else None.

        Args:
            x: a carrier.
            checkpoint: the activation checkpoint that records now.
            tensor: the constant.
        """
        if tensor.dtype is torch.bool:
            return self.conditions.find(tensor, source_of(x, checkpoint), checkpoint)
        return number_in(tensor) if self.conditions.is_number(tensor) else None


def ends(function: Function, before: Curve | None) -> bool:
    """Return whether a function of one carrier makes no chain of one with this curve, or of a source."""
    if before is None or before is POINTS:
        after = function.alone
    elif function.divides and before.is_line:
        return True  # A number over a tensor. Over a variance and an epsilon it is a statistic, which is held constant.
    else:
        after = function([before])
    return after is None or not isfinite(after.at_zero)


def begun(op: Op, curve: Curve, before: Chain | None, x: Tensor, checkpoint: Any, how: How) -> Chain:
    """Return the chain of a function of a source.

    Args:
        op: the operation that computes it.
        curve: the function.
        before: the chain of the source, if it has one.
        x: the source.
        checkpoint: the activation checkpoint that records now.
        how: what else matters.
    """
    source = origin_of(x) if before is None else before.source
    after = Chain(source, curve, checkpoint, active=op.family in (Family.ACTIVATION, Family.MOVEMENT))
    if curve.ratio is not None:
        return after
    if how.relevance or (how.target is not None and not curve_of(op).own_slope):
        base = Base(x, 1.0).kept(relevance=how.relevance, changes=True)
        after.keep(base, base)
    elif curve_of(op).own_slope:
        after.see(x, 1.0)  # to keep it would cost memory: backward may need the output alone
    else:
        after.keep_source(x)
    return after
