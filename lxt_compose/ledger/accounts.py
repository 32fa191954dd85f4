"""The books of one forward pass: its operations, and the tensors between them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from .edge import Edge
from .graph_check import GraphCheck, Interval
from .journal import Balance, Flow, Journal
from .layouts import Layout
from .meters import Meter, Whole
from .operation import Operation

Key = tuple[Any, int]
"""An edge of the autograd graph: the node that it leads to, and the place among that node's outputs."""


class Graph:
    """What is known of the autograd graph during the forward pass; dropped afterwards."""

    def __init__(self) -> None:
        self.meters: dict[Any, Meter] = {}
        """The hook on each node, with the operation that the node belongs to."""
        self.edges: dict[Key, Edge] = {}
        self.wholes: dict[Key, Whole] = {}
        self.layouts: dict[int, tuple[Any, Layout | None]] = {}
        """Tensors (weakly) and their layouts, for those that get another edge because they were changed in place."""
        self.intervals: list[Interval] = []
        self.modules: list[tuple[str, str, list[Key]]] = []
        """The modules that have run, and the edges that stand for their outputs."""
        self.stops: set[Any] = set()
        """The nodes of the inputs; the graph behind them is not the model's."""


class Run:
    """The books of one forward pass and its backward pass; ``page`` is the number of one of several backward passes."""

    def __init__(self, samples: int, outer: Run | None = None) -> None:
        self.samples, self.outer = samples, outer
        self.journal = Journal(samples)
        self.page = 0 if outer is None else outer.journal.pages - 1
        self.graph: Graph | None = Graph()
        self.operations: list[Operation] = []
        self.inputs: list[Flow] = []
        self.roots: list[Flow] = []
        self.modules: list[tuple[str, str, list[Flow]]] = []
        self.check: GraphCheck | None = None

    def balance(self) -> Balance:
        """Return the sums by account."""
        return self.journal.balance(self.page if self.outer is None else 0)


def by_page(runs: Sequence[Run]) -> list[Run]:
    """Return one run for each backward pass; operations recomputed during a backward pass belong to its run."""
    pages: dict[tuple[Run, int], Run] = {}
    found = []
    for run in runs:
        for page in range(run.journal.pages if run.outer is None else 1):
            one = copy(run)
            if run.outer is None:
                one.page = page
                pages[run, page] = one
            else:
                one.outer = pages[run.outer, run.page]
            found.append(one)
    return found
