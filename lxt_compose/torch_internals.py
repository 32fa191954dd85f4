"""What leans on private parts of torch or on Python's stack, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .errors import RegistrationError

if TYPE_CHECKING:
    pass


def _exchange_for_callback() -> Any:
    """What older versions of torch hand out only in exchange for another one."""
    callback = torch._C._dynamo.eval_frame.set_eval_frame(None)
    torch._C._dynamo.eval_frame.set_eval_frame(callback)
    return callback


_compiler: Callable[[], Any] = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", _exchange_for_callback)


def refuse_compiled(what: str) -> None:
    """Raise if this is called from code that torch.compile runs, where neither hooks nor function modes are sure to.

    Raises:
        RegistrationError: it is.
    """
    if _compiler():
        raise RegistrationError(
            f"{what} runs in compiled code, where rules cannot be relied on; call the model itself rather than "
            f"torch.compile(model), or call it under torch.compiler.set_stance('force_eager')"
        )
