"""Coverage: what ran under which rule, counted as it happens, and told as a report."""

from .report import CoverageReport
from .rows import Row, Status

__all__ = ["CoverageReport", "Row", "Status"]
