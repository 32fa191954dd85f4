"""The policy of a registration: what its composite says, and what is known of each function in all of its calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from ..autograd.functions import graft
from ..autograd.nodes import has_backward
from ..autograd.trees import map_tensors, tensors_in
from ..coverage.tally import Tally
from ..keys import Assignment, first_layer
from ..ops import (
    Argument,
    Elementwise,
    Family,
    Op,
    can_mutate,
    compares,
    cuts_history,
    display_name,
    fills,
    is_attribute,
    is_operator,
    op_of,
    registered,
    returns_no_tensor,
)
from ..rules import (
    GRADIENT,
    Epsilon,
    Identity,
    OpCall,
    Rule,
    SignalTakesAll,
    SoftmaxTaylor,
    Stop,
    Uniform,
    default_rule,
    default_rules,
)
from ..rules.defaults import Table, depends_on_call, rule_of_call
from .chain_steps import is_copy, is_elementwise
from .decompositions import STEPS
from .elementwise_histories import Effect
from .frozen_weights import Frozen, as_trained
from .histories import effect_of, told_by_places
from .norm_gradients import with_right_gradient
from .selection_gradients import with_right_selection


@dataclass(eq=False, slots=True)
class FunctionInfo:
    """What is known of one function, whatever its arguments; computed once.

    Attributes:
        key: the user's key that is this function, if there is one.
        ignored: it cannot carry relevance nor change a tensor (shape, dtype, ...).
        inert: it moreover returns no tensor, so that nothing at all is to be done about it.
        cuts: it hands its tensor on without its history, so relevance ends there because the model says so.
        exact: its own gradient moves relevance exactly.
        run: what is run for the function: itself, but for products with frozen weights.
        can_mutate: it may change a tensor in place even when no keyword says so.
        can_drop: it may be dropout, or contain it.
        has_projections: it is attention with projections, whose body is run in its place.
        varies: its default rule depends on the arguments.
        told_by_form: if so, the form of a call tells it, where the call has one.
        foreign: it is of another library, or of the user's.
        steps: by default it is taken apart into this.
        chains: whether it can be a step of a function of one tensor that is written as several operations.
        copies: whether as such a step it may hand on the numbers of its only carrier as they are.
        compares: whether it is a comparison, by which such a function may choose.
        fills: whether it makes a tensor of one number.
        effect: what it does to what is known of its carriers; None where its output is a signal whatever goes in.
        own: the rule that it brings itself, as a drop-in.
        unfolds: it may be taken apart, where a function of one tensor goes into it.
        own_gradient: it is linear, and takes its own gradient by default.
        begins_softmax: it may be the first step of a softmax that the model writes itself.
        by_values: whether arguments that are no tensors matter for what a call comes to.
    """

    function: Callable[..., Any]
    name: str
    op: Op | None
    key: Assignment | None
    run: Callable[..., Any]
    ignored: bool = False
    inert: bool = False
    cuts: bool = False
    exact: bool = False
    is_layer: bool = False
    can_mutate: bool = False
    can_drop: bool = False
    has_projections: bool = False
    varies: bool = False
    told_by_form: bool = False
    foreign: bool = False
    steps: Callable[..., Any] | None = None
    effect: Effect | None = None
    chains: bool = False
    copies: bool = False
    compares: bool = False
    fills: bool = False
    own: Rule | None = None
    unfolds: bool = False
    own_gradient: bool = False
    begins_softmax: bool = False
    by_values: bool = False


class Where(Protocol):
    """The place of a call, as far as a decision needs it: see :class:`~lxt_compose.runtime.call_stack.Context`."""

    path: str
    scope: Rule | None
    scoped: bool
    inside: str | None
    shadowed_by: str | None

    @property
    def module(self) -> nn.Module:
        """The module that runs."""


def _kernel(function: Callable[..., Any], steps: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
    """Run a kernel of another library; if it has no backward, it gets that of its steps, or is seen to have none."""
    output = function(*args, **kwargs)
    has = [has_backward(tensor) for tensor in tensors_in(output)]
    if all(has) or (steps is not None and any(has)):
        return output
    if steps is None:
        return map_tensors(lambda tensor: tensor if has_backward(tensor) else tensor.detach(), output)
    ways = iter(list(tensors_in(steps(*args, **kwargs))))
    return map_tensors(lambda value: graft(value, next(ways)), output)


_LARGEST_CACHE = 1024
_OF_FUNCTIONS: dict[Family, type | tuple[type, ...]] = {
    Family.ACTIVATION: Identity,
    Family.LINEAR: Epsilon,
    Family.PRODUCT: (Uniform, SignalTakesAll),
    Family.DIVISION: Uniform,
    Family.STATISTIC: Stop,
}
"""The default rules under which a chain of operations is one function; under others each step has its own rule."""


@dataclass(eq=False)
class Policy:
    """What a composite says, and what is known of the functions that were met."""

    entries: tuple[Assignment, ...]
    formulation: str
    table: Table
    """The default rule of each family."""
    defaults: bool
    """Whether operations without a key take their default rule."""
    tally: Tally
    frozen: Frozen = field(default_factory=Frozen)
    fixed: Frozen = field(default_factory=Frozen)
    """Parameters that were constants before, and what was computed from them."""
    inert: set[Any] = field(default_factory=set)
    """Functions that have run, return no tensor and change none: they are only called."""

    def __post_init__(self) -> None:
        self.first_layer = next((entry for entry in self.entries if entry.key is first_layer), None)
        self.infos: dict[Any, FunctionInfo] = {}
        """Those of the functions that were met."""
        self._by_function = self.defaults and self.table.get(Family.ACTIVATION) == Identity()
        self._by_function &= all(isinstance(self.table.get(f), kind) for f, kind in _OF_FUNCTIONS.items())
        """Whether a function gets the same relevance however it is written."""
        self._inside = self.table if self.defaults else default_rules(self.formulation)
        """The default rules inside a module whose rule acts on the operations within."""

    def is_learned(self, x: Tensor) -> bool:
        """Return whether a tensor is a parameter of the model, or was computed from parameters alone."""
        return x in self.frozen or x in self.fixed

    def info(self, function: Callable[..., Any]) -> FunctionInfo:
        """Return what is known of a function."""
        found = self.infos.get(function)
        if found is None:
            found = self.infos[function] = self._inform(function)
            if found.inert:
                self.inert.add(function)
        return found

    def _inform(self, function: Callable[..., Any]) -> FunctionInfo:
        op = op_of(function)
        name = op.name if op is not None else display_name(function)
        key = next((entry for entry in self.entries if entry.serves(function, op)), None)
        run = with_right_gradient(as_trained(function, op, self.frozen), op)
        run = with_right_selection(run, op)
        info = FunctionInfo(function, name, op, key, run)
        info.foreign = registered(function) is not None or is_operator(function)
        if info.foreign:
            info.run = partial(_kernel, function, None if op is None else op.steps)
        info.can_mutate = can_mutate(function)
        if op is not None:
            info.can_drop = op.traits.dropout_rate is not None
            info.exact = op.family is Family.MOVEMENT
            info.is_layer = op.traits.has_weight
            info.has_projections = op.traits.has_projections
            info.varies = depends_on_call(op)
            info.told_by_form = not op.traits.modulus and op.traits.state_space is None
            linear = self.table.get(op.family) == Epsilon(0.0)
            info.own_gradient = self.formulation == GRADIENT and key is None and linear
            info.begins_softmax = self._begins_softmax(op, own_gradient=info.own_gradient)
            info.steps = STEPS.get(op.name) or op.steps
            info.effect = effect_of(op)
            info.chains = self._by_function and not info.foreign and is_elementwise(op)
            info.copies = info.chains and is_copy(op)
            info.unfolds = self._by_function and op.family in (Family.DIVISION, Family.HOMOGENEOUS)
            info.by_values = info.can_mutate or info.can_drop or info.varies
            info.by_values |= info.chains or not told_by_places(info.effect)
            return info
        info.compares, info.fills = self._by_function and compares(function), self._by_function and fills(function)
        info.cuts = cuts_history(function)
        tells = returns_no_tensor(function)
        info.ignored = key is None and (tells or (is_attribute(function) and not info.cuts))
        info.inert = info.ignored and tells
        return info

    def _begins_softmax(self, op: Op, *, own_gradient: bool) -> bool:
        """Return whether an operation may be a step toward the powers of a softmax, or the logarithm of one.

        A shift under its own gradient matters only in differences, unless softmax has another rule than the standard
        one.
        """
        traits = op.traits
        if traits.signs is not None:
            keyed = any(entry.op is not None and entry.op.family is Family.SOFTMAX for entry in self.entries)
            stops = keyed or not isinstance(self.table.get(Family.SOFTMAX), SoftmaxTaylor)
            return traits.signs == (1, -1) or stops or not own_gradient
        if traits.base is not None or isinstance(traits.exponent, Argument) or op.family is Family.SOFTMAX:
            return True
        scales = traits.elementwise is Elementwise.AFFINE or op.family in (Family.PRODUCT, Family.DIVISION)
        return traits.softmax_part is not None or (scales and self.formulation != GRADIENT)  # after a shift

    def default(self, info: FunctionInfo, call: OpCall, where: Where) -> Rule | None:
        """Return the default rule of a call, where neither a key nor a rule around decides."""
        assert info.op is not None
        if info.varies:
            return self.said_by_arguments(info, call.args, call.kwargs, where)[1]
        table = self._table(where)
        return None if table is None else default_rule(info.op, table, len(call.carriers))

    def said_by_arguments(
        self, info: FunctionInfo, args: tuple[Any, ...], kwargs: dict[str, Any], where: Where
    ) -> tuple[Family, Rule | None]:
        """Return the family and the default rule of a call, for a function whose arguments decide on both."""
        assert info.op is not None
        table = self._table(where)
        rule = None if table is None else rule_of_call(info.op, table, args, kwargs, where.module)
        return info.op.family_of_call(args, kwargs), rule

    def _table(self, where: Where) -> Table | None:
        return self._inside if where.scoped else self.table if self.defaults else None
