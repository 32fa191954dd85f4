"""What is told when a model fails on its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AttributionError, CompositeError
from ..target_module import explained
from .inputs import Inputs, kind_of
from .structure import no_argument, takes_any

_OF_INPUTS = (RuntimeError, IndexError, ValueError, TypeError)


@contextmanager
def telling(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Turn an error of the model in this context into one that names the model and its inputs.

    Raises:
        AttributionError: the model failed.
    """
    try:
        yield
    except (CompositeError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        whole = explained(model)
        hint = _misnamed(whole, inputs.kwargs) or _of_container(whole, inputs.args)
        if not (hint or isinstance(error, _OF_INPUTS)):
            raise
        if hint:
            raise AttributionError(f"{type(whole).__name__}: {hint} (it raised {type(error).__name__})") from error
        kinds = {kind_of(p) for p in model.parameters() if p.is_floating_point()}
        raise AttributionError(
            f"{type(whole).__name__} (parameters: {', '.join(sorted(kinds)) or 'none'}) failed on the inputs "
            f"{inputs.described()}: {error}"
        ) from error


def _misnamed(model: nn.Module, kwargs: dict[str, Any]) -> str:
    """Return a hint at an argument whose name is nearly one of forward's that was not given."""
    known = [name for name in inspect.signature(model.forward).parameters if name not in kwargs]
    for name in kwargs:
        close = get_close_matches(name, known, n=1)
        if close and takes_any(model) and name not in inspect.signature(model.forward).parameters:
            return f"forward() has no argument {name!r} of its own; did you mean {close[0]!r}?"
    return ""


def _of_container(model: nn.Module, args: tuple[Any, ...]) -> str:
    """Return a hint at samples that were given as a list, or arguments of other names than the model's."""
    given = args[0] if len(args) == 1 else None
    if isinstance(given, dict):
        return f"{no_argument(model, next(iter(given), ''))}, and took the dictionary for that one"
    if not isinstance(given, list) or not given or not all(isinstance(x, Tensor) for x in given):
        return ""
    shapes = {tuple(x.shape) for x in given}
    if len(shapes) > 1:
        return ""
    return f"it takes no list of tensors; stack the {len(given)} samples to one tensor: torch.stack(samples)"
