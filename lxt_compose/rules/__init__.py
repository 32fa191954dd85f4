"""Rules: how relevance passes through one operation. Each is a frozen dataclass with its equation and source."""

from importlib import import_module
from typing import Any

from .alpha_beta import AlphaBeta, ZPlus
from .attention import Attention, ValueAttention
from .base import FORMULATIONS, GRADIENT, RELEVANCE, Call, OpCall, Rule, find_carriers, is_carrier
from .defaults import default_rule, default_rules
from .epsilon import Epsilon
from .gamma import Gamma
from .gated import Gated, GatedEpsilon, SignalTakesAll
from .homogeneous import Homogeneous
from .identity import Identity, Ratio
from .input_layer import Flat, WSquare, ZBox
from .norm import Norm
from .passing import Pass
from .relu import ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop
from .residual_gamma import ResidualGamma
from .softmax import SoftmaxTaylor
from .state_space import StateSpace
from .stop import Stop
from .taylor_decomposition import TaylorDecomposition
from .uniform import Uniform
from .uniform_elements import UniformElements
from .uniform_epsilon import UniformEpsilon

__all__ = [
    "FORMULATIONS",
    "GRADIENT",
    "RELEVANCE",
    "AlphaBeta",
    "Attention",
    "Call",
    "DropIn",
    "Epsilon",
    "EpsilonRule",
    "Flat",
    "Gamma",
    "Gated",
    "GatedEpsilon",
    "Homogeneous",
    "Identity",
    "IdentityRule",
    "Norm",
    "OpCall",
    "Pass",
    "Ratio",
    "ReLUBetaSmooth",
    "ReLUDeconvNet",
    "ReLUGuidedBackprop",
    "ResidualGamma",
    "Rule",
    "SignalTakesAll",
    "SoftmaxTaylor",
    "StateSpace",
    "Stop",
    "StopRelevanceRule",
    "TaylorDecomposition",
    "TaylorDecompositionRule",
    "Uniform",
    "UniformElements",
    "UniformEpsilon",
    "UniformEpsilonRule",
    "UniformRule",
    "ValueAttention",
    "WSquare",
    "ZBox",
    "ZPlus",
    "default_rule",
    "default_rules",
    "find_carriers",
    "is_carrier",
    "rule_of",
]

_OF_LXT = frozenset(
    """
    DropIn EpsilonRule IdentityRule StopRelevanceRule TaylorDecompositionRule UniformEpsilonRule UniformRule rule_of
""".split()
)


def __getattr__(name: str) -> Any:
    """Return one of LXT's names of rules: they stand above the rules, in :mod:`lxt_compose.lxt.rules`."""
    if name in _OF_LXT:
        return getattr(import_module("..lxt.rules", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
