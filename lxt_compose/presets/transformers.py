"""Presets for transformers and state-space models: the default table, with two or three of its entries changed.

They hold for any architecture: they change rules of families of operations. All take the gradient formulation,
in which the relevance of any tensor is ``t * t.grad``; linear operations then cost nothing. In the relevance
formulation the numbers are the same, up to the stabilizers (the resolution of the dtype) that a division by outputs
needs there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..composite import Composite
from ..ops import Family
from ..rules import GRADIENT, ResidualGamma, SignalTakesAll, Stop, ValueAttention, default_rules
from ..rules.defaults import Table

Rules = Mapping[Any, Any] | Iterable[tuple[Any, Any]]


def attnlrp(rules: Rules = (), *, formulation: str = GRADIENT, **options: Any) -> Composite:
    """AttnLRP: relevance through attention weights, gates and norms.

    Linear operations: :class:`Epsilon` with 0; activations: :class:`Identity`; products, gates and matmuls of two
    carriers: shared by their factors (:class:`Uniform`, :class:`UniformEpsilon`; none for sigmoids, :class:`Gated`);
    softmax: :class:`SoftmaxTaylor`; norms: :class:`Norm`; selective state spaces: :class:`StateSpace` (MambaLRP).
    That is the default table itself.

    Args:
        rules: keys and rules of your own (see :class:`Composite`), which go before the table.
        formulation: "gradient" or "relevance".
        options: further arguments of :class:`Composite`, such as `strict` or `canonizers`.

    Raises:
        ValueError: the formulation is unknown.

    Source: Achtibat et al. 2024; gradient formulation: Arras et al. 2025; state spaces: Jafari et al. 2024.
    """
    return _composite(rules, {}, formulation, options)


def cp_lrp(rules: Rules = (), *, formulation: str = GRADIENT, **options: Any) -> Composite:
    """CP-LRP: no relevance through attention weights and gates, so that relevance adds up to the explained number.

    As :func:`attnlrp`, but softmax is a constant (:class:`Stop`), attention hands all relevance to its values
    (:class:`ValueAttention`), and a gated product to its signal (:class:`SignalTakesAll`). The logit is then the sum of
    the relevance of the inputs and of all added constants: biases, tables of positions, class tokens.

    Args:
        rules: keys and rules of your own (see :class:`Composite`), which go before the table.
        formulation: "gradient" or "relevance".
        options: further arguments of :class:`Composite`, such as `strict` or `canonizers`.

    Raises:
        ValueError: the formulation is unknown.

    Source: Ali et al. 2022; gates: Arras et al. 2017.
    """
    changes: Table = {
        Family.SOFTMAX: Stop(),
        Family.ATTENTION: ValueAttention(0.0),
        Family.PRODUCT: SignalTakesAll(0.0),
    }
    return _composite(rules, changes, formulation, options)


def res_lrp(rules: Rules = (), *, gamma: float = 1.0, formulation: str = GRADIENT, **options: Any) -> Composite:
    """ResLRP: AttnLRP with bounded shares where two streams of relevance are added.

    As :func:`attnlrp`, but a sum of two carriers (a residual and its branch) takes :class:`ResidualGamma`.

    Args:
        rules: keys and rules of your own (see :class:`Composite`), which go before the table.
        gamma: how much more an operand weighs that has the sign of the sum, > 0.
        formulation: "gradient" or "relevance".
        options: further arguments of :class:`Composite`, such as `strict` or `canonizers`.

    Raises:
        ValueError: the formulation is unknown, or gamma is not positive.

    Source: Berend et al. 2026.
    """
    own = rules.items() if isinstance(rules, Mapping) else rules
    return _composite([*own, (torch.add, ResidualGamma(gamma))], {}, formulation, options)


def relp(rules: Rules = (), *, formulation: str = GRADIENT, **options: Any) -> Composite:
    """RelP: the propagation coefficients of relevance patching; multiply them with a difference of activations.

    Norms: statistics constant; activations: :class:`Identity`; linear operations: LRP-0; attention weights constant
    (:class:`ValueAttention`); gates: half each (:class:`Uniform`). In the gradient formulation ``t.grad`` is the
    coefficient of the latent tensor t, and its score is ``((t_patch - t) * t.grad).sum()``.

    Args:
        rules: keys and rules of your own (see :class:`Composite`), which go before the table.
        formulation: "gradient" or "relevance".
        options: further arguments of :class:`Composite`, such as `strict` or `canonizers`.

    Raises:
        ValueError: the formulation is unknown.

    Source: Jafari et al. 2025 (RelP), section 3 and table 2.
    """
    return _composite(rules, {Family.SOFTMAX: Stop(), Family.ATTENTION: ValueAttention(0.0)}, formulation, options)


def _composite(rules: Rules, changes: Table, formulation: str, options: dict[str, Any]) -> Composite:
    table = {**default_rules(formulation, epsilon=0.0), **changes}
    return Composite(rules, **{"formulation": formulation, "defaults": table, **options})
