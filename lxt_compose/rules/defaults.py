"""The table of default rules, one for each family of operations: with no key at all, it is AttnLRP."""

from collections.abc import Mapping
from functools import cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.numerics import EPSILON
from ..ops import Argument, Family, Op, is_reversed
from ..torch_internals.readings import values_of
from .attention import Attention
from .base import RELEVANCE, Rule, find_carriers
from .embedding import Lookup, is_for_training
from .epsilon import Epsilon
from .homogeneous import Homogeneous
from .identity import Identity
from .norm import Norm
from .softmax import SoftmaxTaylor
from .state_space import StateSpace, is_state_space, makes_parameters
from .stop import Stop
from .uniform import Uniform
from .uniform_elements import UniformElements
from .uniform_epsilon import UniformEpsilon

Table = Mapping[Family, Rule]
"""The rule of each family of operations."""


@cache
def default_rules(formulation: str, epsilon: float | None = None) -> dict[Family, Rule]:
    """Return the default rule of each family; movement needs none, since its gradient moves relevance exactly.

    Args:
        formulation: "relevance" or "gradient".
        epsilon: the stabilizer of linear operations and of products; by default 1e-6 in the relevance formulation,
            and 0 in the gradient formulation, where linear operations then cost nothing.
    """
    if epsilon is None:
        epsilon = EPSILON if formulation == RELEVANCE else 0.0
    return {
        Family.LINEAR: Epsilon(epsilon),
        Family.ACTIVATION: Identity(),
        Family.PRODUCT: Uniform(),
        Family.CONTRACTION: UniformEpsilon(epsilon),
        Family.DIVISION: Uniform(),
        Family.HOMOGENEOUS: Homogeneous(epsilon),
        Family.STATISTIC: Stop(),
        Family.SOFTMAX: SoftmaxTaylor(),
        Family.NORMALIZATION: Norm(),
        Family.ATTENTION: Attention(epsilon),
    }


def default_rule(op: Op, table: Table, carriers: int = 1) -> Rule | None:
    """Return the default rule of an operation on so many carriers; None for movement, and for what is uncovered."""
    if carriers > 1 and op.multiplies and op.family is Family.LINEAR:
        return table.get(Family.CONTRACTION)  # weights that carry relevance themselves are factors too
    if op.family is Family.PRODUCT and op.addends:
        return table.get(Family.CONTRACTION)  # addcmul: a product plus a tensor
    if op.family is Family.PRODUCT and op.traits.element_sum is not None:
        return _of_elements(table)
    if isinstance(op.traits.exponent, float):  # a root, a square
        return table.get(Family.ACTIVATION)
    return table.get(op.family)


def check_table(table: Any) -> None:
    """Check a table of default rules that a user wrote.

    Raises:
        TypeError: it is no mapping from families to rules.
    """
    if not isinstance(table, Mapping):
        raise TypeError(f"defaults must be True, False or a mapping from families to rules, got {table!r}")
    for key, rule in table.items():
        if not isinstance(key, Family):
            raise TypeError(f"a table of defaults takes families such as Family.SOFTMAX as keys, got {key!r}")
        if not isinstance(rule, Rule):
            raise TypeError(f"the default for {key!r} must be a rule, got {rule!r} of type {type(rule).__name__}")


def depends_on_call(op: Op) -> bool:
    """Return whether :func:`rule_of_call` may give another rule than :func:`default_rule`."""
    known = op.traits
    alone = known.lookup or known.modulus or known.dropout or known.state_space is not None
    argued = isinstance(known.exponent, Argument) or known.decides_family
    return alone or argued or _has_modes(op)


def _has_modes(op: Op) -> bool:
    """Return whether it is a normalization in train mode, and a linear layer in eval mode."""
    return op.traits.norm is not None and op.traits.training is not None


def rule_of_call(op: Op, table: Table, args: tuple[Any, ...], kwargs: dict[str, Any], module: nn.Module) -> Rule | None:
    """Return the default rule where it depends on the arguments of the call, or on the module that makes it."""
    known = op.traits
    if known.decides_family:
        family = op.family_of_call(args, kwargs)
        return _of_elements(table) if family is Family.PRODUCT else table.get(family)
    if known.state_space is not None:
        selects = is_state_space(module) and makes_parameters(op, args, kwargs)
        return StateSpace() if selects else table.get(op.family)
    if known.lookup:
        return Lookup() if is_for_training(args, kwargs) else None
    if isinstance(known.exponent, Argument):
        return table.get(Family.ACTIVATION if raises(op, args, kwargs) else Family.STATISTIC)
    if known.modulus:
        return table.get(Family.HOMOGENEOUS if any(map(torch.is_complex, find_carriers(args, kwargs))) else op.family)
    if _has_modes(op):
        return table.get(Family.NORMALIZATION if _is_training(op, args, kwargs) else Family.LINEAR)
    return table.get(Family.LINEAR) if drops(op, args, kwargs) else None  # a dropout


def _of_elements(table: Table) -> Rule | None:
    """Return the rule for the elements of one tensor as factors.

    There is no gate among them: all come from one tensor.
    """
    return UniformElements() if Family.PRODUCT in table else None


def drops(op: Op | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call drops elements at random."""
    if op is None or op.traits.dropout_rate is None:
        return False
    return bool(op.traits.dropout_rate.of(args, kwargs)) and _is_training(op, args, kwargs)


def _is_training(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call is in train mode; functions without a mode are."""
    return op.traits.training is None or bool(op.traits.training.of(args, kwargs))


def raises(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a power passes relevance: ``x ** p`` with a constant p > 0, or ``b ** x`` with a constant b > 0.

    The first is homogeneous, the second an exponential function. With a negative exponent it is a statistic, which
    multiplies what it normalizes (``x * var ** -0.5``). Where a root is divided by, the division holds it constant.
    """
    given = [*args, *(kwargs[name] for name in ("input", "self", "exponent") if name in kwargs)]
    if len(given) != 2:
        return False
    base, exponent = reversed(given) if is_reversed(op) else given
    carriers = [x for x in (base, exponent) if isinstance(x, Tensor) and x.requires_grad]
    if len(carriers) != 1:
        return False
    constant = base if exponent is carriers[0] else exponent
    if not isinstance(constant, Tensor):
        return isinstance(constant, Real) and float(constant) > 0
    shape = carriers[0].shape
    if torch.broadcast_shapes(constant.shape, shape) != shape:
        return False
    with values_of(constant):
        return bool((constant > 0).all())
