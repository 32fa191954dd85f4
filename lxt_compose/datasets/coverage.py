"""The reports of many batches, added up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..coverage.report import CoverageReport

_Key = tuple[str, str, str, str, str]


@dataclass
class Coverage:
    """Coverage of a data set: rows of reports, with their calls added up, and the remarks of the reports.

    Attributes:
        complete: whether every report is.
        samples: the number of samples of the reports.
    """

    complete: bool = True
    samples: int = 0
    calls: dict[_Key, int] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def count(self, report: CoverageReport, samples: int) -> None:
        """Add the report of one batch."""
        self.complete &= report.complete
        self.samples += samples
        self.notes |= dict.fromkeys(report.notes)
        for row in report.rows:
            key = (row.path, row.target, row.rule, row.status.value, row.note)
            self.calls[key] = self.calls.get(key, 0) + row.calls

    def add(self, other: Coverage) -> None:
        """Add another coverage."""
        self.complete &= other.complete
        self.samples += other.samples
        self.notes |= other.notes
        for key, calls in other.calls.items():
            self.calls[key] = self.calls.get(key, 0) + calls

    def to_dict(self) -> dict[str, Any]:
        """Return the coverage as numbers and texts."""
        names = ("where", "what", "rule", "status", "note")
        rows = [{**dict(zip(names, key, strict=True)), "calls": calls} for key, calls in self.calls.items()]
        return {"complete": self.complete, "samples": self.samples, "rows": rows, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Coverage:
        """Return the coverage from the result of :meth:`to_dict`."""
        calls = {(r["where"], r["what"], r["rule"], r["status"], r["note"]): r["calls"] for r in kept["rows"]}
        return cls(kept["complete"], kept["samples"], calls, dict.fromkeys(kept["notes"]))
