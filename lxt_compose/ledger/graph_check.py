"""A second check for completeness, independent of the ledger: a walk through the autograd graph.

Each autograd node has a number, counted up in the order in which nodes are made. So the numbers tell which nodes were
made while an operation ran that a rule, a family or an exact op accounts for. All other nodes come from operations that
the function mode does not see: custom autograd functions, scripted or compiled code, extensions in C++.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ..autograd.nodes import CUSTOM, OTHER, kind_of_node, name_of_node
from ..coverage.rows import ROOT, Status
from ..torch_internals import node_number


class Interval(NamedTuple):
    """The nodes made while one operation ran, from `first` up to but not including `stop`."""

    first: int
    stop: int
    path: str
    name: str
    status: Status | None


@dataclass(frozen=True, slots=True)
class GraphRow:
    """Nodes of one kind that nothing accounts for: their name, the module that used them, a reason, their number."""

    name: str
    path: str
    why: str
    nodes: int = 1

    def __str__(self) -> str:
        times = f" ({self.nodes} nodes)" if self.nodes > 1 else ""
        return f"{self.name} before {self.path or ROOT}: {self.why}{times}"


@dataclass(frozen=True, slots=True)
class GraphCheck:
    """What the walk through the autograd graph found; `nodes` is the number of nodes on it."""

    rows: tuple[GraphRow, ...]
    nodes: int

    @property
    def complete(self) -> bool:
        """Whether a rule, a family or an exact op accounts for every node between the output and the inputs."""
        return not self.rows

    def __str__(self) -> str:
        if self.complete:
            return f"complete: all of {self.nodes} autograd nodes are accounted for"
        found = "\n".join(f"  {row}" for row in self.rows)
        return f"NOT complete: of {self.nodes} autograd nodes nothing accounts for\n{found}"


def check_graph(outputs: Iterable[Tensor], stops: Collection[Any], intervals: Sequence[Interval]) -> GraphCheck:
    """Walk from the outputs up to the nodes in `stops`, and list what no interval accounts for.

    Args:
        outputs: tensors that require grad.
        stops: the nodes of the inputs; what lies behind them is not the model's.
        intervals: the operations that were seen, with their status; none within another.
    """
    spans = sorted(intervals)
    starts = [span.first for span in spans]
    pending: list[tuple[Any, str]] = [(z.grad_fn, "") for z in outputs if z.grad_fn is not None]
    met: set[Any] = set()
    found: dict[tuple[str, str, str], int] = {}
    while pending:
        node, consumer = pending.pop()
        if node in met or node in stops:
            continue
        met.add(node)
        number = node_number(node)
        place = bisect_right(starts, number) - 1
        span = spans[place] if place >= 0 and number < spans[place].stop else None
        row = None
        if span is None:
            kind = kind_of_node(node)
            row = (name_of_node(node), consumer, kind) if kind in (CUSTOM, OTHER) else None
        elif span.status is Status.UNCOVERED:
            row = (span.name, span.path, "uncovered")
        if row is not None:
            found[row] = found.get(row, 0) + 1
        path = consumer if span is None else span.path
        pending += [(source, path) for source, _ in node.next_functions if source is not None]
    return GraphCheck(tuple(GraphRow(*row, nodes) for row, nodes in found.items()), len(met))
