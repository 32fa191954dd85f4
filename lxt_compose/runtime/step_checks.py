"""What is asked of steps that stand for an operation, and of the integers and narrow floats that one makes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..autograd.trees import tensors_in
from ..errors import RegistrationError, place
from ..ops import makes_integers
from .call_stack import Frame
from .policy import FunctionInfo
from .session import Session

EIGHT_BITS = "relevance that flows back through floats of 8 bits is rounded to them"
_FAR = 0.3
"""The distance between steps and values, over the length of the values, that kernels in 4 bits do not reach."""


def misfit(info: FunctionInfo, path: str, what: str) -> RegistrationError:
    """Return the error for steps that do not fit their operation."""
    return RegistrationError(
        f"the steps of {info.name}, in {place(path)}, {what}; register_operation(..., steps=) takes a function of the "
        f"same arguments that computes the same"
    )


def check_steps(session: Session, info: FunctionInfo, path: str, values: Any, steps: Sequence[Tensor]) -> None:
    """Check what steps compute, which relevance follows, beside the operation's own values; these once for each place.

    Raises:
        RegistrationError: they are other tensors.
    """
    if not info.foreign:
        return
    made = list(tensors_in(values))
    shapes = [[tuple(x.shape) for x in tensors] for tensors in (steps, made)]
    if shapes[0] != shapes[1]:
        raise misfit(info, path, f"compute tensors of the shapes {shapes[0]} where it computes {shapes[1]}")
    if (info.function, path) in session.steps_checked:
        return
    session.steps_checked.add((info.function, path))
    for step, value in zip(steps, made, strict=True):
        far = _distance(step, value)
        if far > _FAR:
            warnings.warn(
                f"the steps of {info.name}, in {place(path)}, compute something else than it does: numbers differ by "
                f"{far:.0%}, and relevance is that of the steps",
                stacklevel=2,
            )


@torch.no_grad()
def _distance(step: Tensor, value: Tensor) -> float:
    """Return the distance of two tensors over the length of the second; 0 where values cannot be read."""
    if type(step) is not type(value) or not (step.is_floating_point() and value.is_floating_point()):
        return 0.0
    try:
        far = (step.detach().double() - value.detach().double()).norm() / value.detach().double().norm()
        return float(far) if far.isfinite() else 0.0
    except (RuntimeError, TypeError):  # under a tracer, or on a device without float64
        return 0.0


def is_narrow(output: Any) -> bool:
    """Return whether these are floats of 8 bits, to which autograd rounds what flows back, too."""
    return isinstance(output, Tensor) and output.requires_grad and output.dtype.itemsize == 1


def note_rounded(session: Session, frame: Frame, info: FunctionInfo, args: Any, kwargs: Any, output: Tensor) -> None:
    """Tell who follows integers of a tensor without gradients that was made of carriers; else remark on integers."""
    if session.rounded is not None:
        session.rounded(info.function, args, kwargs, output)
    elif makes_integers(info.function, args, kwargs, output):
        session.tally.remarks[
            f"{info.name} in {place(frame.path)} makes integers of numbers that carry relevance: what is computed of "
            f"those is a constant"
        ] = None
