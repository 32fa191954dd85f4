"""LXT's drop-in modules, under their public import path; see :mod:`lxt_compose.lxt.modules`."""

from .lxt.modules import *  # noqa: F403
from .lxt.modules import __all__ as __all__
