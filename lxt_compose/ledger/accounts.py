"""The accounts: what is written down about operations, and the tensors between them, while relevance flows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..coverage.rows import Status
from ..ops import Op
from ..rules import Rule
from .graph_check import GraphCheck, Interval
from .journal import Flow, Journal
from .meters import Edge, Meter
from .samples import Layout
from .sinks import UNCOVERED

Key = tuple[Any, int]
"""An edge of the autograd graph: the node that it leads to, and the place among that node's outputs."""


@dataclass(slots=True, eq=False)
class Operation:
    """One operation that has run: its rule, the tensors it made, and what it sent on."""

    path: str
    name: str
    sent: int
    """The account of all that it sent."""
    op: Op | None = None
    function: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    carriers: list[tuple[Tensor, Edge]] = field(default_factory=list)
    rule: Rule | None = None
    status: Status | None = None
    """None: no mode, hook or rule saw it; it was found in the autograd graph."""
    first_node: int = 0
    parts: int = 0
    """How many operations inside it were seen on their own."""
    made: list[Flow] = field(default_factory=list)
    sources: list[Layout | None] = field(default_factory=list)
    """The layouts of the tensors that it sends relevance to."""
    known: dict[str, int] = field(default_factory=dict)
    """The accounts of what its rule is known to absorb, by kind."""
    silent: int = 0
    """How many ways from it to its carriers got no gradient where they could have one."""
    unreadable: bool = False
    """Relevance left it for a tensor whose value is not known."""
    rest: str = UNCOVERED
    """The kind of what it absorbs beyond that."""
    passes_on: bool = False
    """It is a checkpoint: what is recomputed inside it keeps books of its own."""

    def told(self, rule: Rule | None, status: Status) -> None:
        """Hear under which rule it runs."""
        self.rule, self.status = rule, status

    def forget(self) -> None:
        """Let go of tensors once it has run."""
        self.function, self.args, self.kwargs, self.carriers = None, (), {}, []


class Graph:
    """What is known of the autograd graph while the forward pass runs: dropped when it has ended."""

    def __init__(self) -> None:
        self.meters: dict[Any, Meter] = {}
        """What hangs on a node, and says which operation it belongs to."""
        self.edges: dict[Key, Edge] = {}
        self.layouts: dict[int, tuple[Any, Layout | None]] = {}
        """Tensors (weakly) and their layouts, for those that get another edge because they were changed in place."""
        self.intervals: list[Interval] = []
        self.modules: list[tuple[str, str, list[Key]]] = []
        """The modules that have run, and the edges that stand for their outputs."""
        self.stops: set[Any] = set()
        """The nodes of the inputs: what lies behind them is not the model's."""


class Run:
    """The books of one forward pass and its backward."""

    def __init__(self, samples: int, outer: Run | None = None) -> None:
        self.samples, self.outer = samples, outer
        self.journal = Journal(samples)
        self.graph: Graph | None = Graph()
        self.operations: list[Operation] = []
        self.inputs: list[Flow] = []
        self.roots: list[Flow] = []
        self.modules: list[tuple[str, str, list[Flow]]] = []
        self.check: GraphCheck | None = None
