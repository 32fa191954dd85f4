"""The body of torch's attention function, which hands itself to function modes before it does anything."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch.nn import functional as F


def attention_body() -> Callable[..., Any]:
    """Return ``F.multi_head_attention_forward`` without its first step, which hands it to an active function mode.

    A mode that is to see the operations inside must be active while the function runs, and would be handed the function
    itself without end. This is a copy of it, whose globals answer "no overrides": the same code in every version of
    torch, so values stay bit-identical, and F is not touched.

    Unnecessary once torch has the body as a function of its own.
    """
    original = F.multi_head_attention_forward
    names = {**original.__globals__, "has_torch_function": lambda *_: False}
    body = FunctionType(original.__code__, names, original.__name__, original.__defaults__, original.__closure__)
    body.__kwdefaults__ = original.__kwdefaults__
    return body
