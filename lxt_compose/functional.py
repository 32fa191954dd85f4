"""LXT's drop-in functions, under their public import path; see :mod:`lxt_compose.lxt.functional`."""

from .lxt.functional import *  # noqa: F403
from .lxt.functional import __all__ as __all__
