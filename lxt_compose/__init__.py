"""Layer-wise relevance propagation on live, unmodified PyTorch models, with a table of what is covered."""

from . import baselines, evaluate, functional, heatmap, kinds, modules, presets
from .attribution import Attribution, attribute, blocks
from .canonize import Canonizer, MergeBatchNorm
from .composite import Composite
from .conservation import check_conservation
from .coverage import CoverageReport
from .coverage_rows import Row, Status
from .errors import (
    AttributionError,
    CompositeError,
    ConservationError,
    MatchError,
    NotFiniteError,
    RegistrationError,
    RuleError,
    UncoveredError,
)
from .ledger import Ledger
from .matching import first_layer, where
from .numerics import Stabiliser
from .ops import Family
from .registration import Registration, remove
from .rules import (
    AlphaBeta,
    Attention,
    Epsilon,
    Flat,
    Gamma,
    Gated,
    GatedEpsilon,
    Identity,
    Norm,
    Pass,
    Ratio,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    ResidualGamma,
    Rule,
    SignalTakesAll,
    SoftmaxTaylor,
    StateSpace,
    Stop,
    TaylorDecomposition,
    Uniform,
    UniformEpsilon,
    ValueAttention,
    WSquare,
    ZBox,
    ZPlus,
    default_rules,
)

__version__ = "0.1.0"

__all__ = [
    "AlphaBeta",
    "Attention",
    "Attribution",
    "AttributionError",
    "Canonizer",
    "Composite",
    "CompositeError",
    "ConservationError",
    "CoverageReport",
    "Epsilon",
    "Family",
    "Flat",
    "Gamma",
    "Gated",
    "GatedEpsilon",
    "Identity",
    "Ledger",
    "MatchError",
    "MergeBatchNorm",
    "Norm",
    "NotFiniteError",
    "Pass",
    "Ratio",
    "ReLUBetaSmooth",
    "ReLUDeconvNet",
    "ReLUGuidedBackprop",
    "Registration",
    "RegistrationError",
    "ResidualGamma",
    "Row",
    "Rule",
    "RuleError",
    "SignalTakesAll",
    "SoftmaxTaylor",
    "Stabiliser",
    "StateSpace",
    "Status",
    "Stop",
    "TaylorDecomposition",
    "UncoveredError",
    "Uniform",
    "UniformEpsilon",
    "ValueAttention",
    "WSquare",
    "ZBox",
    "ZPlus",
    "attribute",
    "baselines",
    "blocks",
    "check_conservation",
    "default_rules",
    "evaluate",
    "first_layer",
    "functional",
    "heatmap",
    "kinds",
    "modules",
    "presets",
    "remove",
    "where",
]
