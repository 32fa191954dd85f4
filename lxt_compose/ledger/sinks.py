"""Where relevance goes that an operation does not hand on: what its rule says, and the kind of what is left.

All that an operation absorbs is what arrives less what leaves. A part of it the rule gives by a formula; the rest is of
one kind. So the kinds of an operation always add up to what it absorbs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..coverage.rows import Status
from ..rules import OpCall
from ..rules.absorption import CONSTANT, RULE, STABILIZER, UNCOVERED
from ..rules.base import Amount
from .edge import Edge, Reader
from .journal import Row
from .operation import Operation
from .rows import row_of


def call_of(operation: Operation, formulation: str) -> OpCall:
    """Return the call that an operation is, as rules know it."""
    module = operation.function if isinstance(operation.function, nn.Module) else None
    carriers = [x for x, _ in operation.carriers]
    call = OpCall(formulation, "", operation.args, operation.kwargs, operation.op, module, operation.function, carriers)
    call.path, call.name, call.rule = operation.path, operation.name, operation.rule
    call.values = [x.detach() for x in carriers]
    return call


def rest_of(operation: Operation, call: OpCall) -> str:
    """Return the kind of what an operation absorbs beyond what its rule gives by a formula."""
    if operation.status is Status.UNCOVERED:
        return UNCOVERED
    if operation.rule is None:
        return CONSTANT if operation.status is Status.EXACT else RULE
    kind = operation.rule.rest(call)
    return STABILIZER if kind == RULE and operation.status is Status.DEFAULT else kind


def sinks_of(operation: Operation, call: OpCall, z: Tensor, edge: Edge) -> list[tuple[str, Reader]]:
    """Return what is absorbed at an output z by formula: kinds, each with a function that reads the amount of a slot.

    Args:
        operation: what made z.
        call: its call.
        z: an output.
        edge: where its relevance is booked.
    """
    if operation.rule is None:
        return []
    call.output = z
    return [(kind, _reader(amount, edge)) for kind, amount in operation.rule.absorbed(call).items()]


def _reader(amount: Amount, edge: Edge) -> Reader:
    def read(slot: Tensor) -> Row:
        found = amount(slot)
        if found.is_complex():
            found = torch.view_as_real(found).sum(-1)
        return row_of(found, edge.layout, edge.samples)

    return read
