"""Whether rules conserve relevance: what arrives at an operation, what it hands on, and what it is known to keep."""

from .check import Checked, ConservationCheck, check_conservation
from .ran import Ran

__all__ = ["Checked", "ConservationCheck", "Ran", "check_conservation"]
