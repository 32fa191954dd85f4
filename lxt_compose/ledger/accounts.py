"""The accounts: what is written down about operations, and the tensors between them, while relevance flows."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..coverage import Status
from ..ops import Op
from ..rules import Rule
from ..saving import Kept, keep
from .graph_check import GraphCheck, Interval
from .samples import Layout, by_sample
from .sinks import UNCOVERED

Key = tuple[int, int]
"""An edge of the autograd graph: the identity of the node that it leads to, and the place among that node's outputs."""


class Postings:
    """Amounts of relevance, by sample: each has [samples + 1] numbers, the last one what no sample is known for."""

    __slots__ = ("amounts",)

    def __init__(self) -> None:
        self.amounts: list[Tensor | array[float]] = []

    def add(self, amount: Tensor) -> None:
        """Post an amount."""
        # Thousands of small tensors that stay, between large ones that go, would leave the heap in pieces.
        self.amounts.append(array("d", amount.tolist()) if amount.device.type == "cpu" else amount)

    def sum(self, samples: int) -> Tensor:
        """Everything that was posted, on the CPU in float64."""
        if not self.amounts:
            return torch.zeros(samples + 1, dtype=torch.float64)
        rows = [
            torch.frombuffer(amount, dtype=torch.float64) if isinstance(amount, array) else amount.cpu().double()
            for amount in list(self.amounts)
        ]
        return torch.stack(rows).sum(0)


class Flow:
    """What was read of the relevance of one tensor. It holds no tensor of the model, so that nothing is kept alive."""

    __slots__ = ("arrived", "samples", "sent")

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.arrived = Postings()
        """All relevance that arrived, read at the operation that made the tensor."""
        self.sent = Postings()
        """What the operations that used it say they sent."""


@dataclass(slots=True, eq=False)
class Edge:
    """A tensor on the way: how its relevance is read off its slot. It lives as long as the autograd graph does."""

    value: Kept | None
    """Its value, in the gradient formulation, where R = value * slot."""
    layout: Layout | None
    flow: Flow

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.flow.samples

    def keep(self, z: Tensor) -> Kept:
        """The tensor's value."""
        return self.value or keep(z)

    def read(self, slot: Tensor) -> Tensor:
        """The relevance in a slot, by sample; a slot of 0 has none, also at masked scores of -inf."""
        with torch.no_grad():
            if self.value is None:
                return by_sample(_real(slot), self.layout, self.samples)
            slot, value = _alike(slot, self.value.value)
            amounts = by_sample(slot * value, self.layout, self.samples)
            if amounts.isnan().any():
                amounts = by_sample(torch.where(slot == 0, 0, slot * value), self.layout, self.samples)
            return amounts


def _real(relevance: Tensor) -> Tensor:
    """Complex numbers hold one relevance for their real and one for their imaginary part."""
    return torch.view_as_real(relevance).sum(-1) if relevance.is_complex() else relevance


def _alike(slot: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Both as real numbers, and not in half precision."""
    if slot.is_complex() or value.is_complex():
        slot, value = (torch.view_as_real(t if t.is_complex() else t.to(torch.complex128)) for t in (slot, value))
        return slot, value
    short = slot.dtype in (torch.float16, torch.bfloat16)
    return (slot.float(), value.float()) if short else (slot, value)


@dataclass(slots=True, eq=False)
class Operation:
    """One operation that has run: its rule, the tensors it made, and what it sent on."""

    path: str
    name: str
    op: Op | None = None
    function: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    carriers: list[tuple[Tensor, Key, Edge]] = field(default_factory=list)
    rule: Rule | None = None
    status: Status | None = None
    """None: no mode, hook or rule saw it; it was found in the autograd graph."""
    first_node: int = 0
    parts: int = 0
    """How many operations inside it were seen on their own."""
    made: list[Flow] = field(default_factory=list)
    sources: list[Layout | None] = field(default_factory=list)
    """The layouts of the tensors that it sends relevance to."""
    sent: Postings = field(default_factory=Postings)
    known: dict[str, Postings] = field(default_factory=dict)
    """What its rule is known to absorb, by kind."""
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
        self.owners: dict[int, Operation] = {}
        """The operation that a node belongs to, by the node's identity."""
        self.edges: dict[Key, Edge] = {}
        self.alive: dict[int, Any] = {}
        """Nodes are kept, so that no identity is given to another one."""
        self.layouts: Any = WeakIdKeyDictionary()
        """The layouts of tensors, for those that get another edge because they were changed in place."""
        self.intervals: list[Interval] = []
        self.modules: list[tuple[str, str, list[Key]]] = []
        """The modules that have run, and the edges that stand for their outputs."""
        self.stops: set[int] = set()
        """The nodes of the inputs: what lies behind them is not the model's."""


class Run:
    """The books of one forward pass and its backward."""

    def __init__(self, samples: int, outer: Run | None = None) -> None:
        self.samples, self.outer = samples, outer
        self.graph: Graph | None = Graph()
        self.operations: list[Operation] = []
        self.inputs: list[Flow] = []
        self.roots: list[Flow] = []
        self.modules: list[tuple[str, str, list[Flow]]] = []
        self.check: GraphCheck | None = None
