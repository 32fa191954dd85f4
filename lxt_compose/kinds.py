"""Groups of module types to use as keys, under their public import path; see :mod:`lxt_compose.ops.module_types`."""

from .ops.module_types import *  # noqa: F403
from .ops.module_types import __all__ as __all__
