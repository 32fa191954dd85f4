"""The journal: amounts of relevance as they are read; sums by account are computed when needed."""

from __future__ import annotations

from array import array
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Row: TypeAlias = "Tensor | array[float]"
"""An amount of relevance by sample: [samples + 1] numbers, of which the last belongs to no known sample."""


class Flow(NamedTuple):
    """The accounts of one tensor."""

    arrived: int
    """All relevance that arrived, read at the operation that made the tensor."""
    sent: int
    """All relevance that was sent, read at the operations that used the tensor."""


class Journal:
    """All amounts that were read in one forward pass and its backward pass: rows, and the accounts they are posted to.

    Each further backward pass gets a page of its own by :meth:`turn`.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._accounts = 0
        self._pages: list[list[tuple[Row, tuple[int, ...]]]] = [[]]

    def open(self) -> int:
        """Return the number of a new account."""
        self._accounts += 1
        return self._accounts - 1

    def flow(self) -> Flow:
        """Return the new accounts of a tensor."""
        return Flow(self.open(), self.open())

    def post(self, row: Row, *accounts: int) -> None:
        """Add a row to accounts."""
        self._pages[-1].append((row, accounts))

    @property
    def pages(self) -> int:
        """The number of backward passes."""
        return len(self._pages)

    def turn(self) -> None:
        """Begin another backward pass: rows that are posted from now on belong to it."""
        self._pages.append([])

    def balance(self, page: int = 0) -> Balance:
        """Return the sums by account, as of now."""
        posted = list(self._pages[page])  # another thread may be posting
        on = [account for _, accounts in posted for account in accounts]
        which = [place for place, (_, accounts) in enumerate(posted) for _ in accounts]
        sums = torch.zeros(self._accounts, self.samples + 1, dtype=torch.float64)
        if posted:
            rows = _stacked([row for row, _ in posted], self.samples + 1)
            sums.index_add_(0, torch.tensor(on), rows[torch.tensor(which)])
        return Balance(sums, frozenset(on))


class Balance(NamedTuple):
    """The sums of a journal: [accounts, samples + 1] in float64 on the CPU, and which accounts were posted to."""

    sums: Tensor
    used: frozenset[int]


def _stacked(rows: list[Row], width: int) -> Tensor:
    """Return rows as one matrix; those on another device are copied together."""
    matrix = torch.empty(len(rows), width, dtype=torch.float64)
    places: dict[torch.device | None, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.device if isinstance(row, Tensor) else None, []).append(place)
    for device, here in places.items():
        if device is None:
            numbers = bytearray().join(rows[place] for place in here)  # type: ignore[misc]
            matrix[here] = torch.frombuffer(numbers, dtype=torch.float64).view(-1, width)
        else:
            matrix[here] = torch.stack([torch.as_tensor(rows[place]) for place in here]).cpu().double()
    return matrix
