"""Layer-wise relevance propagation on live, unmodified PyTorch models, with a table of what is covered."""

from . import command_start  # noqa: F401, I001 - before torch is imported
from . import baselines, compat, concepts, evaluate, functional, heatmap, kinds, modules, old_paths, presets, targets
from .attribution import Attribution, TracedAttribution, attribute, blocks
from .autograd.numerics import Stabilizer
from .autograd.trees import register_container
from .canonizers.base import Canonizer
from .canonizers.merge_batch_norm import MergeBatchNorm
from .canonizers.merge_forward import MergeBatchNormForward
from .composite import Composite
from .conservation import check_conservation
from .coverage.report import CoverageReport
from .coverage.rows import Row, Status
from .datasets import attribute_dataset
from .errors import (
    AttributionError,
    CompositeError,
    ConservationError,
    MatchError,
    NotFiniteError,
    RegistrationError,
    RuleError,
    TraceError,
    UncoveredError,
)
from .generation import GenerationAttribution, attribute_generation, attribute_outputs
from .keys import first_layer, where
from .ledger import Ledger
from .ops import Family
from .ops import register as register_operation
from .rules import (
    AlphaBeta,
    Attention,
    Epsilon,
    Flat,
    Gamma,
    Gated,
    GatedEpsilon,
    Homogeneous,
    Identity,
    Norm,
    OpCall,
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
    UniformElements,
    UniformEpsilon,
    ValueAttention,
    WSquare,
    ZBox,
    ZPlus,
    default_rules,
)
from .runtime.registration import Registration, remove
from .similarity import SimilarityAttribution, attribute_similarity
from .target_module import with_target

__version__ = "0.1.0"

old_paths.install()
__getattr__ = old_paths.attribute

Stabiliser = Stabilizer
"""The name in version 0.1."""

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
    "GenerationAttribution",
    "Homogeneous",
    "Identity",
    "Ledger",
    "MatchError",
    "MergeBatchNorm",
    "MergeBatchNormForward",
    "Norm",
    "NotFiniteError",
    "OpCall",
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
    "SimilarityAttribution",
    "SoftmaxTaylor",
    "Stabilizer",
    "StateSpace",
    "Status",
    "Stop",
    "TaylorDecomposition",
    "TraceError",
    "TracedAttribution",
    "UncoveredError",
    "Uniform",
    "UniformElements",
    "UniformEpsilon",
    "ValueAttention",
    "WSquare",
    "ZBox",
    "ZPlus",
    "attribute",
    "attribute_dataset",
    "attribute_generation",
    "attribute_outputs",
    "attribute_similarity",
    "baselines",
    "blocks",
    "check_conservation",
    "compat",
    "concepts",
    "default_rules",
    "evaluate",
    "first_layer",
    "functional",
    "heatmap",
    "kinds",
    "modules",
    "presets",
    "register_container",
    "register_operation",
    "remove",
    "targets",
    "where",
    "with_target",
]
