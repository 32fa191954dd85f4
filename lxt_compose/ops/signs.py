"""Which operations put out no negative number: whatever their input, or if their inputs have none."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .families import Family, Op
from .lookup import op_named
from .traits import Argument, Elements


@dataclass(frozen=True, slots=True)
class Sign:
    """When the output of an operation has no negative number; NaN is none, and -0.0 neither.

    Attributes:
        always: whatever the input is.
        kept: if no number that it is given is negative: no element of its tensors (other than an index), no scalar.
        least: the argument below which no output lies.
        product: whether it multiplies its inputs element by element.
        exponent: the argument by which it raises to a power: never negative if that is even.
    """

    always: bool = False
    kept: bool = False
    least: Argument | None = None
    product: bool = False
    exponent: Argument | None = None


_NEVER_NEGATIVE = "sigmoid hardsigmoid relu relu6 exp exp2 abs softplus cosh erfc sqrt square i0 i0e"
"""Of these a rounded result is none either; sqrt gives NaN for negative numbers."""
_KEEP = """
    elu selu celu gelu silu mish tanh softsign hardswish hardtanh hardshrink softshrink threshold leaky_relu clamp
    clamp_min clamp_max asinh atan sinh erf expm1 log1p floor ceil round trunc sign add pow
"""
"""Of these a rounded result keeps the sign too. Divisions do not: 1 / -0.0 is -inf, and -0.0 is not negative."""
_LEAST = {"clamp": Argument(1, "min"), "clamp_min": Argument(1, "min"), "hardtanh": Argument(1, "min_val", -1.0)}
_NOT_KEPT = "resize resize_as as_strided cross real imag complex view_as_real view_as_complex"
"""Exceptions from families: memory that others wrote or nobody, differences, complex numbers."""
_SAME = "detach"
"""No operation for rules; its output is its input."""
_NEGATIVE_WEIGHTS = re.compile("cubic|lanczos")


def sign_of(name: str) -> Sign:
    """Return what is known of the sign of an operation's output, by its name in ATen ("relu_", "_softmax")."""
    op = op_named(name)
    if op is None or _NEGATIVE_WEIGHTS.search(name):
        return Sign(kept=name == _SAME)
    return Sign(
        always=op.name in _NEVER_NEGATIVE.split() or op.traits.softmax_sign is not None or _is_length(op),
        kept=op.name not in _NOT_KEPT.split() and (op.name in _KEEP.split() or _moves_or_adds(op)),
        least=_LEAST.get(op.name),
        product=op.name == "mul",
        exponent=op.traits.exponent if isinstance(op.traits.exponent, Argument) and op.name == "pow" else None,
    )


def _is_length(op: Op) -> bool:
    return op.family is Family.HOMOGENEOUS and op.name != "cov"


def _moves_or_adds(op: Op) -> bool:
    """Return whether elements are moved, multiplied, or added with weights that are not negative."""
    if op.family in (Family.MOVEMENT, Family.PRODUCT, Family.CONTRACTION):
        return True
    return op.traits.elements is Elements.AVERAGED
