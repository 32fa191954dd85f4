"""Rules: how relevance passes through one operation. Each is a frozen dataclass with its equation and source."""

from .alpha_beta import AlphaBeta, ZPlus
from .attention import Attention, ValueAttention
from .base import FORMULATIONS, GRADIENT, RELEVANCE, Call, Rule, find_carriers, is_carrier
from .bypass import Identity, Pass, Ratio, Stop, Uniform
from .defaults import default_rule, default_rules
from .dropins import (
    DropIn,
    EpsilonRule,
    IdentityRule,
    StopRelevanceRule,
    TaylorDecompositionRule,
    UniformEpsilonRule,
    UniformRule,
    rule_of,
)
from .first import Flat, WSquare, ZBox
from .gates import Gated, GatedEpsilon, SignalTakesAll
from .normalisation import Norm
from .relu import ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop
from .residual import ResidualGamma
from .scaling import Epsilon, UniformEpsilon
from .softmax import SoftmaxTaylor
from .split import Gamma
from .state_space import StateSpace
from .taylor import TaylorDecomposition

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
    "Identity",
    "IdentityRule",
    "Norm",
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
