"""The ledger: where the relevance of the output went, and what of it is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..coverage.rows import Status
from .adapters import AdapterEntry, adapter_lines, adapters_of
from .books import UNSEEN, Amount, Books, Entry, ModuleEntry, nothing
from .graph_check import GraphCheck, GraphRow
from .table import Line, html_of, lines_of, text_of


class Ledger:
    """Where relevance went, from the output (the seed) to the inputs: ``seed = inputs + absorbed + unaccounted``.

    Made by ``registration.ledger()``, around a forward pass. It fills while relevance flows, so read it after the
    backward pass. Each forward pass adds its samples. All amounts are in the units of the output.
    """

    def __init__(self, books: Books | Callable[[], Books]) -> None:
        self._source = books

    @property
    def books(self) -> Books:
        """All data, as of now."""
        return self._source if isinstance(self._source, Books) else self._source()

    def frozen(self) -> Ledger:
        """Return the ledger as it is now: data without a reference to the model."""
        return Ledger(self.books)

    @property
    def seed(self) -> Tensor:
        """The relevance that the backward pass began with, of each sample; float64."""
        return self.books.seed.per_sample

    @property
    def inputs(self) -> Tensor:
        """What reached the inputs, of each sample; float64."""
        return self.books.inputs.per_sample

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every operation that relevance passed, in the order of first execution."""
        return self.books.entries

    @property
    def modules(self) -> tuple[ModuleEntry, ...]:
        """Every module, in the order of first execution."""
        return self.books.modules

    @property
    def adapters(self) -> tuple[AdapterEntry, ...]:
        """Every layer with an adapter of PEFT, and how much of the relevance at its output came through that."""
        return adapters_of(self.books)

    @property
    def check(self) -> GraphCheck:
        """The second, independent check for completeness: a walk through the autograd graph."""
        return self.books.check

    @property
    def absorbed(self) -> dict[str, Tensor]:
        """What was absorbed on the way, of each sample, by kind."""
        books = self.books
        kinds: dict[str, Amount] = {}
        for entry in books.entries:
            if entry.status != UNSEEN:
                for kind, amount in entry.absorbed.items():
                    kinds[kind] = kinds.get(kind, nothing(len(books.seed.by_sample))) + amount
        return {kind: amount.per_sample for kind, amount in kinds.items()}

    @property
    def unaccounted(self) -> float:
        """The largest ``|seed - inputs - absorbed|`` of a sample: 0 to rounding, or some operation was not seen."""
        return self.books.unaccounted

    @property
    def uncovered(self) -> tuple[Entry, ...]:
        """Operations that relevance passed without a rule, seen or not."""
        return tuple(entry for entry in self.entries if entry.status in (Status.UNCOVERED.value, UNSEEN))

    def share(self, amount: Amount) -> float:
        """Return an amount as a part of the seed; over several samples the mean, weighted by the sizes of seeds."""
        return self.books.share(amount)

    def lines(self) -> list[Line]:
        """Return the table's lines, unfolded: one for each place, operation and kind, the largest leak first."""
        return lines_of(self.books)

    def to_string(self, *, width: int = 100, rows: int | None = 20) -> str:
        """Return summary and table in lines of at most `width` columns; `rows` None for every line."""
        books = self.books
        return text_of(books, width, rows, adapter_lines(books))

    def __str__(self) -> str:
        return self.to_string()

    def __repr__(self) -> str:
        seed, inputs = self.books.seed.total, self.books.inputs.total
        return f"<Ledger: seed {seed:.4g}, inputs {inputs:.4g}, unaccounted {self.unaccounted:.1e}>"

    def _repr_html_(self) -> str:
        """Return the table for a notebook: self-contained, for light and dark backgrounds."""
        books = self.books
        return html_of(books, beside=adapter_lines(books))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return every entry as a dictionary, ready for JSON; amounts are totals over samples."""
        return [
            {
                **{name: getattr(entry, name) for name in ("path", "name", "rule", "status", "calls")},
                "entered": entry.entered.total,
                "left": entry.left.total,
                "absorbed": {kind: amount.total for kind, amount in entry.absorbed.items()},
                "share": self.share(entry.lost),
                "passes": self.share(entry.entered),
            }
            for entry in self.entries
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dictionaries, lists, strings and numbers: the input of :meth:`from_dict`."""
        data: dict[str, Any] = _plain(self.books)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ledger:
        """Return the ledger that :meth:`to_dict` was called on."""
        entries = [{**e, "absorbed": {k: _amount(a) for k, a in e["absorbed"].items()}} for e in data["entries"]]
        check = GraphCheck(tuple(GraphRow(**row) for row in data["check"]["rows"]), data["check"]["nodes"])
        return cls(
            Books(
                seed=_amount(data["seed"]),
                inputs=_amount(data["inputs"]),
                entries=tuple(Entry(**_amounts(e, "entered", "left")) for e in entries),
                modules=tuple(ModuleEntry(**_amounts(m, "entered", "absorbed")) for m in data["modules"]),
                gaps=tuple(data["gaps"]),
                check=check,
                notes=tuple(data["notes"]),
            )
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def _amount(data: Mapping[str, Any]) -> Amount:
    return Amount(torch.tensor(data["by_sample"], dtype=torch.float64), data["shared"])


def _amounts(data: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: _amount(value) if key in names else value for key, value in data.items()}
