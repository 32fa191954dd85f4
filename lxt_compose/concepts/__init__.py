"""Concepts: units of any model by name, relevance through them, and interventions on them.

Units are named alike everywhere: ``"conv2[3]"``, ``"layers.*.mlp.act[0:64]"``, ``"layers.3.attn:heads[2]@-1"``, or
taken from a :class:`Dictionary`.
"""

from .canvas import Ascent, color_matrix
from .circuits import attribute_nodes, faithfulness, patch_nodes
from .concept_graph import concept_graph
from .conditional import conditional
from .dictionary import Dictionary
from .gallery import gallery
from .graph import Edges, circuit_graph, edges
from .intervene import Effect, Intervention, ablate, effect, patch, record, steer
from .measure import Measured, activations, relevances
from .nodes import Effects, Node
from .prototypes import ConceptVectors, Prototype, Prototypes, concept_vectors, fit_prototypes
from .pruning import Pruned, prune, pruning_scores
from .references import Reference, References, find_references
from .unit_graph import UnitGraph
from .unit_pruning import UnitScores, prune_units, unit_scores
from .units import Units, find_units
from .visualize import FeatureImages, visualize
from .weights import WeightRelevance, weight_relevance

__all__ = [
    "Ascent",
    "ConceptVectors",
    "Dictionary",
    "Edges",
    "Effect",
    "Effects",
    "FeatureImages",
    "Intervention",
    "Measured",
    "Node",
    "Prototype",
    "Prototypes",
    "Pruned",
    "Reference",
    "References",
    "UnitGraph",
    "UnitScores",
    "Units",
    "WeightRelevance",
    "ablate",
    "activations",
    "attribute_nodes",
    "circuit_graph",
    "color_matrix",
    "concept_graph",
    "concept_vectors",
    "conditional",
    "edges",
    "effect",
    "faithfulness",
    "find_references",
    "find_units",
    "fit_prototypes",
    "gallery",
    "patch",
    "patch_nodes",
    "prune",
    "prune_units",
    "pruning_scores",
    "record",
    "relevances",
    "steer",
    "unit_scores",
    "visualize",
    "weight_relevance",
]
