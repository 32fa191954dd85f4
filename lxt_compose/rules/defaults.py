"""The table of default rules, one for each family of operations: with no key at all, it is AttnLRP."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.numerics import EPSILON
from ..ops import DROPOUTS, Family, Op
from .attention import Attention
from .base import RELEVANCE, Rule, find_carriers
from .embedding import Lookup, is_for_training
from .epsilon import Epsilon
from .gated import Gated, GatedEpsilon, has_sigmoid_gate
from .homogeneous import Homogeneous
from .identity import Identity
from .norm import Norm
from .softmax import SoftmaxTaylor
from .state_space import StateSpace, is_state_space, makes_parameters
from .stop import Stop
from .uniform import Uniform
from .uniform_epsilon import UniformEpsilon

_POWERS = frozenset({"pow", "rpow", "float_power"})
_SELECTIONS = frozenset({"split", "split_with_sizes", "softplus"})


Table = Mapping[Family, Rule]
"""The rule of each family of operations."""


@cache
def default_rules(formulation: str, epsilon: float | None = None) -> dict[Family, Rule]:
    """The default rule of each family; movement needs none, since its gradient moves relevance exactly.

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


def default_rule(op: Op, table: Table) -> Rule | None:
    """The default rule of an operation; None for movement, and for what is uncovered."""
    if op.family is Family.PRODUCT and op.addends:
        return table.get(Family.CONTRACTION)  # addcmul: a product that something is added to
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
    """Whether :func:`rule_of_call` may give another rule than :func:`default_rule`."""
    by_name = op.name in ("abs", "batch_norm", "embedding") or op.name in DROPOUTS | _POWERS | _SELECTIONS
    return by_name or op.multiplies


def rule_of_call(
    op: Op, table: Table, args: tuple[Any, ...], kwargs: dict[str, Any], carriers: int, module: nn.Module
) -> Rule | None:
    """The default rule where it depends on the arguments of the call, or on the module that makes it."""
    if op.name in _SELECTIONS:
        selects = is_state_space(module) and makes_parameters(op.name, args, kwargs)
        return StateSpace() if selects else table.get(op.family)
    if op.name == "embedding":
        return Lookup() if is_for_training(args, kwargs) else None
    if op.name in _POWERS:
        return table.get(Family.ACTIVATION if raises(op, args, kwargs) else Family.STATISTIC)
    if op.name == "abs":
        return table.get(Family.HOMOGENEOUS if any(map(torch.is_complex, find_carriers(args, kwargs))) else op.family)
    if op.name == "batch_norm":
        training = _flag(args, kwargs, 5, default=False)
        return table.get(Family.NORMALIZATION if training else Family.LINEAR)
    if op.name in DROPOUTS:
        return table.get(Family.LINEAR) if dropout_is_active(args, kwargs) else None
    return _of_product(op, table, args, kwargs, carriers)


def _of_product(op: Op, table: Table, args: tuple[Any, ...], kwargs: dict[str, Any], carriers: int) -> Rule | None:
    """The rule for factors: weights that carry relevance themselves are factors too, sigmoids are gates."""
    if op.family is Family.LINEAR:
        rule = table.get(Family.CONTRACTION if carriers > 1 else Family.LINEAR)
    else:
        rule = default_rule(op, table)
    if carriers > 1 and type(rule) in (Uniform, UniformEpsilon) and has_sigmoid_gate(find_carriers(args, kwargs)):
        return GatedEpsilon(rule.epsilon) if isinstance(rule, UniformEpsilon) else Gated()
    return rule


_RATES = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}
"""Where attention operations take the rate of their dropout, ``dropout_p``."""
CAN_DROP = DROPOUTS | set(_RATES)


def drops(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of one of the operations in `CAN_DROP` drops elements at random."""
    if name in DROPOUTS:
        return dropout_is_active(args, kwargs)
    place = _RATES[name]
    training = name != "multi_head_attention_forward" or _flag(args, kwargs, 13, default=True)
    return bool(kwargs.get("dropout_p", args[place] if len(args) > place else 0.0)) and training


def raises(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a power passes relevance: ``x ** p`` with a constant p > 0, or ``b ** x`` with a constant b > 0.

    The first is homogeneous, the second an exponential function. With a negative exponent it is a statistic, which
    multiplies what it normalizes (``x * var ** -0.5``). Where a root is divided by, the division holds it constant.
    """
    given = [*args, *(kwargs[name] for name in ("input", "self", "exponent") if name in kwargs)]
    if len(given) != 2:
        return False
    base, exponent = reversed(given) if op.name == "rpow" else given
    carriers = [x for x in (base, exponent) if isinstance(x, Tensor) and x.requires_grad]
    if len(carriers) != 1:
        return False
    constant = base if exponent is carriers[0] else exponent
    if not isinstance(constant, Tensor):
        return isinstance(constant, (int, float)) and constant > 0
    shape = carriers[0].shape
    return torch.broadcast_shapes(constant.shape, shape) == shape and bool((constant > 0).all())


def dropout_is_active(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a dropout function drops anything."""
    rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    return bool(rate) and _flag(args, kwargs, 2, default=True)


def _flag(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, *, default: bool) -> bool:
    for name in ("training", "train"):
        if name in kwargs:
            return bool(kwargs[name])
    return bool(args[place]) if len(args) > place else default
