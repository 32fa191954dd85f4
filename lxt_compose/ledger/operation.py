"""Operations of a forward pass in a ledger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..autograd.sharded import is_sharded
from ..autograd.trees import tensors_in
from ..coverage.rows import Status
from ..errors import RegistrationError, place
from ..ops import Op, mutates
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
    """None for an operation that is known only from the autograd graph."""
    first_node: int = 0
    parts: int = 0
    """The number of operations inside it that were seen on their own."""
    made: list[Flow] = field(default_factory=list)
    sources: list[Layout | None] = field(default_factory=list)
    """The layouts of the tensors that it sends relevance to."""
    known: dict[str, int] = field(default_factory=dict)
    """The accounts of what its rule says that it absorbs, by kind."""
    silent: int = 0
    """The number of edges from it to its carriers that got no gradient and could have."""
    unreadable: bool = False
    """Relevance left it for a tensor whose value is not known."""
    rest: str = UNCOVERED
    """The kind of what it absorbs beyond :attr:`known`."""
    passes_on: bool = False
    """It is a checkpoint: operations recomputed inside it have books of their own."""

    def told(self, rule: Rule | None, status: Status) -> None:
        """Note the rule under which the operation runs."""
        self.rule, self.status = rule, status

    def forget(self) -> None:
        """Drop tensors once the operation has run."""
        self.function, self.args, self.kwargs, self.carriers = None, (), {}, []


def changed(seen: Operation) -> Iterator[Tensor]:
    """Yield the arguments that may have been changed in place.

    A change in place gives other views new nodes too, which the function did not make.
    """
    given = list(tensors_in((seen.args, seen.kwargs)))
    target = given[0] if given and mutates(seen.function, seen.args, seen.kwargs) else None
    base = target if target is None or target._base is None else target._base
    for x in given:
        if base is None or x is target or (x is not base and x._base is not base):
            yield x


def changed_view(seen: Operation) -> Tensor | None:
    """Return the view that an operation has changed in place, where autograd leads to its base; or None."""
    if not any(x._is_view() for x, _ in seen.carriers) or not mutates(seen.function, seen.args, seen.kwargs):
        return None
    target = next(tensors_in((seen.args, seen.kwargs)), None)
    return target if target is not None and target._base is not None and target._base.requires_grad else None


def refuse_spread(seen: Operation, tensors: Iterable[Tensor]) -> None:
    """Raise where several processes hold a tensor together: what one of them holds does not add up.

    Raises:
        RegistrationError: they do.
    """
    if any(map(is_sharded, tensors)):
        raise RegistrationError(
            f"{seen.name}, in {place(seen.path)}, works on tensors that are spread over processes (tensor parallel), "
            f"so the books of one process do not add up; keep no ledger (ledger=False), or run the whole model in one"
        )
