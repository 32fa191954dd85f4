"""The form of a call: its arguments without the carriers. What depends on no tensor is looked up by it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..autograd.trees import PLAIN, tensors_in

Form = tuple[Any, ...]
"""The number of arguments, the keywords, and the arguments, with :data:`CARRIER` for each carrier."""
CARRIER = object()


def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], Form | None]:
    """Return the carriers among the arguments of a call, also inside containers, and the form of the call.

    A call that is given a constant tensor or a container, and not carriers and plain values alone, has no form.
    """
    carriers, plain = [], True
    form: list[Any] = [len(args), *kwargs]
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            if value.requires_grad:
                carriers.append(value)
                form.append(CARRIER)
            else:
                plain = False
        elif type(value) in PLAIN:  # what most arguments are that are no tensors
            form.append(value)
        else:
            plain = False
            carriers += [tensor for tensor in tensors_in(value) if tensor.requires_grad]
    return carriers, tuple(form) if plain else None
