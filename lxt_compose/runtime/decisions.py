"""Plans: what is to be done when a function is called, worked out once for each function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..autograd.trees import tensors_in
from ..keys import Assignment, first_layer
from ..ops import Family, Op, can_mutate, display_name, op_of
from ..rules import GRADIENT, Epsilon, Rule, SignalTakesAll, Uniform, UniformEpsilon, default_rule, default_rules
from ..rules.defaults import CAN_DROP, Table, depends_on_call
from .decompositions import STEPS
from .frozen_weights import Frozen, as_trained

_GETTERS = ("__get__", "__set__")
_CUTS = frozenset(
    """
    Tensor.detach Tensor.detach_ torch.detach torch.detach_copy Tensor.data
    Tensor.item Tensor.tolist Tensor.numpy Tensor.__float__ Tensor.__array__
""".split()
)
_METADATA = frozenset(
    """
    size dim ndimension stride numel nelement element_size storage_offset is_contiguous is_floating_point is_complex
    get_device __len__
""".split()
)
_OWN_GRADIENT = Epsilon(0.0)
_OWN_GRADIENT_ALONE = (Uniform(), UniformEpsilon(0.0), SignalTakesAll(0.0))
"""Rules for products that leave the gradient as it is where only one factor carries relevance."""


@dataclass(eq=False, slots=True)
class Plan:
    """What is to be done when one function is called; worked out once for each function."""

    function: Callable[..., Any]
    name: str
    op: Op | None
    rule: Rule | None
    entry: Assignment | None = None
    """The user's key that matched, if one did."""
    outranked: Assignment | None = None
    """The user's key that would match, did not a rule on the module around stand before it."""
    ignored: bool = False
    """It cannot carry relevance nor change a tensor (shape, dtype, ...)."""
    cuts: bool = False
    """It hands its tensor on without its history, so relevance ends there because the model says so."""
    exact: bool = False
    run: Callable[..., Any] = field(init=False)
    """What is run for the function: itself, but for products with frozen weights (as_trained.py)."""
    can_mutate: bool = False
    """It may change a tensor in place even when no keyword says so."""
    can_drop: bool = False
    """It may be dropout, or contain it."""
    passive: bool = False
    """In the gradient formulation the default rule is the own gradient if there is one carrier: nothing to be done."""
    varies: bool = False
    """The default rule depends on the arguments."""
    steps: Callable[..., Any] | None = None
    """By default it is taken apart into this (written_out.py)."""


class Plans:
    """The plans of one registration."""

    def __init__(self, entries: tuple[Assignment, ...], formulation: str, table: Table | None) -> None:
        self.frozen = Frozen()
        self._entries, self._table = entries, table
        self._all_of_scope = default_rules(formulation) if table is None else table
        self._may_be_passive = formulation == GRADIENT and all(entry.key is not first_layer for entry in entries)
        self._plans: dict[tuple[Any, bool], Plan] = {}
        self.inert: set[Any] = set()
        """Functions that have run, return no tensor and change none: nothing at all is to be done about them."""

    def of(self, func: Callable[..., Any], *, scoped: bool) -> Plan:
        """The plan for a function; `scoped` inside a module whose rule acts on the operations within."""
        plan = self._plans.get((func, scoped))
        if plan is None:
            plan = self._plans[func, scoped] = self._make(func, scoped)
            plan.run = as_trained(func, plan.name, self.frozen)
            plan.can_mutate = can_mutate(func)
            plan.can_drop = plan.op is not None and plan.op.name in CAN_DROP
        return plan

    def _make(self, func: Callable[..., Any], scoped: bool) -> Plan:
        op = op_of(func)
        name = op.name if op is not None else display_name(func)
        served = next((entry for entry in self._entries if entry.serves(func, op)), None)
        if served is not None and not scoped:
            return Plan(func, name, op, served.rule, served)
        if op is None:
            named = getattr(func, "__name__", "")
            cuts = name in _CUTS and named != "__set__"
            read = named == "__get__" and name != "Tensor.grad_fn" and not cuts
            if name.startswith("Tensor.") and (named in _METADATA or read):
                self.inert.add(func)
            ignored = (named in _GETTERS and not cuts) or func in self.inert
            return Plan(func, name, None, None, outranked=served, ignored=ignored, cuts=cuts)
        exact = op.family is Family.MOVEMENT
        table = self._all_of_scope if scoped else self._table
        if table is None:
            return Plan(func, name, op, None, exact=exact)
        rule, varies = default_rule(op, table), depends_on_call(op)
        alone = rule == _OWN_GRADIENT or (op.multiplies and rule in _OWN_GRADIENT_ALONE)
        passive = self._may_be_passive and alone and not op.held and (op.multiplies or not varies) and not scoped
        steps = STEPS[name] if op.family is Family.COMPOSED and rule is None else None
        return Plan(func, name, op, rule, outranked=served, exact=exact, varies=varies, passive=passive, steps=steps)


def written(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that a function which works in place writes into: `out`, or its first tensor argument (or list)."""
    candidates = (kwargs["out"],) if "out" in kwargs else (*args, *kwargs.values())
    return next((iter(found) for value in candidates if (found := list(tensors_in(value)))), iter(()))


def hold(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with those that the default rule holds constant (a divisor, say) cut off from relevance."""

    def held(place: int | str, value: Any) -> Any:
        return value.detach() if place in op.held and isinstance(value, Tensor) and value.requires_grad else value

    return tuple(held(i, v) for i, v in enumerate(args)), {name: held(name, v) for name, v in kwargs.items()}
