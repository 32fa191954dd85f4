"""Whether rules conserve relevance: what arrives at an operation against what it hands on and keeps."""

from .check import Checked, ConservationCheck, check_conservation
from .ran import Ran

__all__ = ["Checked", "ConservationCheck", "Ran", "check_conservation"]
