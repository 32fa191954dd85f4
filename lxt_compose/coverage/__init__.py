"""Coverage: which operations ran under which rule, counted while they run, and the report of it."""

from .report import CoverageReport
from .rows import Row, Status

__all__ = ["CoverageReport", "Row", "Status"]
