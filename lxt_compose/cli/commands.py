"""The commands of `lxt-compose`: each takes parsed options and returns its answer."""

from .answer import Answer
from .composite_options import CompositeOptions
from .concepts import ConceptOptions, collect_concepts
from .explain import explain
from .explain_answer import AnswerOptions, explain_answer
from .explanation import ExplainOptions
from .listing import list_presets, list_rules
from .report import report
from .run import RunOptions, run
from .similarity import SimilarityOptions, explain_similarity, pairs_of

__all__ = [
    "Answer",
    "AnswerOptions",
    "CompositeOptions",
    "ConceptOptions",
    "ExplainOptions",
    "RunOptions",
    "SimilarityOptions",
    "collect_concepts",
    "explain",
    "explain_answer",
    "explain_similarity",
    "list_presets",
    "list_rules",
    "pairs_of",
    "report",
    "run",
]
