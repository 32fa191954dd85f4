"""One operation of a forward pass, as a ledger knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..coverage.rows import Status
from ..ops import Op
from ..rules import Rule
from ..rules.absorption import UNCOVERED
from .edge import Edge
from .journal import Flow
from .layouts import Layout


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
    """None for an operation that was seen in the autograd graph only, by no mode, hook or rule."""
    first_node: int = 0
    parts: int = 0
    """How many operations inside it were seen on their own."""
    made: list[Flow] = field(default_factory=list)
    sources: list[Layout | None] = field(default_factory=list)
    """The layouts of the tensors that it sends relevance to."""
    known: dict[str, int] = field(default_factory=dict)
    """The accounts of what its rule is known to absorb, by kind."""
    silent: int = 0
    """How many edges from it to its carriers got no gradient where they could have one."""
    unreadable: bool = False
    """Relevance left it for a tensor whose value is not known."""
    rest: str = UNCOVERED
    """The kind of what it absorbs beyond :attr:`known`."""
    passes_on: bool = False
    """It is a checkpoint: what is recomputed inside it keeps books of its own."""

    def told(self, rule: Rule | None, status: Status) -> None:
        """Take the rule under which the operation runs."""
        self.rule, self.status = rule, status

    def forget(self) -> None:
        """Drop tensors once the operation has run."""
        self.function, self.args, self.kwargs, self.carriers = None, (), {}, []
