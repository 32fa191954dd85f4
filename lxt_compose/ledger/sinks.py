"""Kinds of absorption of an operation: the amounts that its rule gives, and the kind of the rest.

An operation absorbs what arrives less what leaves. The rule gives parts of that by a formula, and the rest is of one
kind, so the kinds of an operation always add up to what it absorbs.
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
    """Return an operation as the call that rules take."""
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
    """Return what is absorbed at an output z by formula: for each kind, a function from the slot to the amount.

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
