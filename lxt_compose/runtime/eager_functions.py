"""Functions inside a model that are compiled on their own, such as methods under ``@torch.compile``."""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack

import torch

from ..torch_internals import is_compiled_code


class EagerFunctions:
    """Functions that were compiled inside a model, run eagerly while models run under rules, in any thread.

    ``@torch.compile`` on a method or a helper: what is compiled runs no function modes, and the mode cannot be
    compiled either.
    """

    def __init__(self) -> None:
        self._lock, self._running, self._stance = threading.Lock(), 0, ExitStack()

    def begin(self) -> bool:
        """Have them run eagerly from now on, if there may be some; return whether :meth:`end` is due."""
        stance = getattr(torch.compiler, "set_stance", None)
        if stance is None or "torch._dynamo" not in sys.modules or is_compiled_code():
            return False
        with self._lock:
            if not self._running:
                self._stance.enter_context(stance("force_eager"))
            self._running += 1
        return True

    def end(self) -> None:
        """Have them run as they were, unless another model still runs."""
        with self._lock:
            self._running -= 1
            if not self._running:
                self._stance.close()


EAGER_FUNCTIONS = EagerFunctions()
