"""Decisions about operations, made from the call, the module it runs in, and the composite.

:func:`decide` only reads, but that it opens the row of the report for what will be counted, with no calls yet. Its
result is kept at the call site, in its `Context`, so that the next pass costs a look-up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from ..autograd.trees import tensors_in
from ..coverage.rows import Status
from ..coverage.tally import Count, OpKey, Tally
from ..keys import Assignment
from ..ops import Family, Op
from ..rules import (
    GRADIENT,
    Epsilon,
    OpCall,
    Rule,
    SignalTakesAll,
    Stop,
    Uniform,
    UniformEpsilon,
)
from ..rules.gated import gated_form
from .policy import FunctionInfo, Policy, Where

_OWN_GRADIENT = Epsilon(0.0)
_OWN_GRADIENT_ALONE = (Uniform(), UniformEpsilon(0.0), SignalTakesAll(0.0))
"""Rules for products that leave the gradient as it is where only one factor carries relevance."""
_DIFFERENTIATION = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


class Action(Enum):
    """What is done about an operation through which relevance flows."""

    RUN = "run it as it is: its own gradient is what is wanted"
    RULE = "apply a rule to it"
    REPLACE = "run the user's function in its place"
    STEPS = "take it apart into operations that have rules"
    UNCOVERED = "run it as it is, and say that no rule covers it"
    SHADOWED = "run it as it is: the rule of a module around it takes the whole module"
    REFUSE = "raise: it differentiates inside the forward pass"


@dataclass(eq=False, slots=True)
class Decision:
    """What is done about one operation at one place.

    Attributes:
        action: what is done.
        rule: the rule that is applied, if one is.
        key: the user's key that gave the rule.
        count: the row of the report that it is counted in; None where the rows of a module stand for it.
        shadowed: the row of a user's key that matches, but is outranked by the rule of a module around.
        gated: the rule in place of `rule` where one of several factors is a gate.
        served: the rule comes from a module around, and acts on operations inside of it.
        keep: whether the decision holds for each call of the function in this module with as many carriers.
    """

    info: FunctionInfo
    action: Action
    status: Status
    rule: Rule | None = None
    key: Assignment | None = None
    count: Count | None = None
    shadowed: Count | None = None
    gated: Rule | None = None
    served: bool = False
    keep: bool = True


CallSite = tuple[Any, ...]
"""All that a decision within one module depends on: the function, the number of carriers, for some functions also
arguments."""


def decide(call: OpCall, info: FunctionInfo, where: Where, policy: Policy, *, first: bool = False) -> Decision:
    """Decide what is done about a call through which relevance flows.

    Args:
        call: the call; only read.
        info: what is known of its function.
        where: the module that runs, and the rule around it.
        policy: what the composite says.
        first: whether this is the first layer that relevance reaches, and the key `first_layer` goes before all others.
    """
    tally, key = policy.tally, info.key
    if where.shadowed_by is not None:
        return Decision(info, Action.SHADOWED, Status.SHADOWED, shadowed=_shadowed(tally, info, where))
    if key is not None and not where.scoped:
        shadowed = None
    else:
        key, shadowed = None, _shadowed(tally, info, where)
    keep = info.own is None and not (info.is_layer and policy.first_layer is not None)
    made = Decision(info, Action.RULE, Status.DEFAULT, None, key, None, shadowed, keep=keep)
    scope = where.scope
    if key is not None:
        made.rule = key.rule
    elif info.own is not None:
        made.rule = info.own
    elif (
        info.op is not None
        and info.op.steps is None
        and scope is not None
        and scope.serves(info.op, len(call.carriers))
    ):
        made.rule, made.served = scope, True
    elif info.op is not None and info.op.steps is None:
        made.rule = policy.default(info, call, where)
        if info.op.multiplies and len(call.carriers) > 1:
            made.gated = gated_form(made.rule)
    if first and policy.first_layer is not None:
        made.rule, made.key = policy.first_layer.rule, policy.first_layer
    _choose_action(made, call, policy, where)
    if made.action in (Action.RUN, Action.RULE, Action.REPLACE) and (scope is None or made.key is not None):
        shown: Rule | str = made.rule or ("" if made.key is None else made.key.shown)
        note = "" if info.own is None else "drop-in"
        made.count = tally.count(OpKey(where.path, info.name, shown, made.key, made.status, note))
    return made


def decide_on_step(rule: Rule, shown: Rule, info: FunctionInfo, where: Where, policy: Policy) -> Decision:
    """Decide about a step of a chain of elementwise functions, whose rule the report calls `shown`."""
    made = Decision(info, Action.RULE, Status.DEFAULT, rule, keep=False)
    made.shadowed = _shadowed(policy.tally, info, where)
    if where.scope is None:
        made.count = policy.tally.count(OpKey(where.path, info.name, shown, None, made.status))
    return made


def _choose_action(made: Decision, call: OpCall, policy: Policy, where: Where) -> None:
    info, op, key = made.info, made.info.op, made.key
    if key is not None:
        made.status = Status.RULED
        made.action = Action.RULE if key.replacement is None else Action.REPLACE
    elif info.own is not None:
        made.status = Status.RULED
    elif made.rule is None and _is_exact(info, call):
        made.action, made.status = Action.RUN, Status.EXACT
    elif info.function in _DIFFERENTIATION:
        made.action = Action.REFUSE
    elif made.rule is None:
        taken_apart = info.steps is not None and (policy.defaults or where.scoped)
        made.action = Action.STEPS if taken_apart else Action.UNCOVERED
        made.status = Status.UNCOVERED
    elif op is not None and policy.formulation == GRADIENT and where.scope is None and not op.held:
        alone = op.multiplies and len(call.carriers) == 1 and made.rule in _OWN_GRADIENT_ALONE
        if alone or (made.rule == _OWN_GRADIENT and made.keep):
            made.action = Action.RUN


def _is_exact(info: FunctionInfo, call: OpCall) -> bool:
    """Return whether the operation's own gradient moves relevance exactly, in this call."""
    return info.exact or (info.op is not None and info.op.family_of_call(call.args, call.kwargs) is Family.MOVEMENT)


def _shadowed(tally: Tally, info: FunctionInfo, where: Where) -> Count | None:
    """Return the row for a key that matches, where a rule on the module around goes before it."""
    if info.key is None:
        return None
    note = f"inside {where.inside or where.path or '(model)'}"
    return tally.count(OpKey(where.path, info.name, info.key.shown, info.key, Status.SHADOWED, note))


STOP = Stop()


def written(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that a function which works in place writes into: `out`, or its first tensor (or list)."""
    candidates = (kwargs["out"],) if "out" in kwargs else (*args, *kwargs.values())
    return next((iter(found) for value in candidates if (found := list(tensors_in(value)))), iter(()))


def hold(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Detach arguments that the default rule holds constant (a divisor, say)."""

    def held(place: int | str, value: Any) -> Any:
        return value.detach() if place in op.held and isinstance(value, Tensor) and value.requires_grad else value

    return tuple(held(i, v) for i, v in enumerate(args)), {name: held(name, v) for name, v in kwargs.items()}
