"""Layouts of what a recurrent net puts out: a sequence, padded or packed, and its last states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .layouts import Layout


def after_recurrent(
    args: tuple[Any, ...], layouts: Sequence[tuple[Tensor, Layout]], outputs: Sequence[Tensor]
) -> list[Layout | None]:
    """Return the layouts of a sequence ``[time, batch, feature]`` and of states ``[layer, batch, feature]``.

    States have the batch second whatever the sequence has. A packed sequence ``[row, feature]`` has the samples of each
    position one after the other, longest first; its states have them in the order of the first position.

    Args:
        args: those of torch's kernel: input, sizes of batches (if packed), first state, ..., batch first (if padded).
        layouts: the carriers among them, and their layouts.
        outputs: the sequence and the states, or some of them.
    """
    input, sizes = args[0], args[1]
    packed = isinstance(sizes, Tensor) and not sizes.is_floating_point()
    place = 0 if packed or args[-1] is True else 1
    counts = sizes.tolist() if packed else []
    nothing: list[Layout | None] = [None] * len(outputs)
    if input.dim() != (2 if packed else 3):
        return nothing
    owners = []
    for x, layout in layouts:
        if layout.dim != (place if x is input else 1):
            return nothing  # it mixes samples
        owners.append(layout.owner[: counts[0]] if packed and x is input else layout.owner)
    batch = owners[0]
    rows = torch.cat([batch[:count] for count in counts]) if packed else batch
    whole = [rows if x is input else batch for x, _ in layouts]
    if not all(torch.equal(layout.owner, owner) for (_, layout), owner in zip(layouts, whole, strict=True)):
        return nothing
    plain = torch.equal(batch, torch.arange(len(batch)))
    sequence, state = Layout(place, rows, plain and not packed), Layout(1, batch, plain)
    return [_of(z, n, outputs, input, sequence, state) for n, z in enumerate(outputs)]


def _of(
    z: Tensor, number: int, outputs: Sequence[Tensor], input: Tensor, sequence: Layout, state: Layout
) -> Layout | None:
    """Return the layout of one output: the sequence comes first; an output alone is told by its shape."""
    if len(outputs) > 1:
        return state if number else sequence
    fits_sequence = z.shape[:-1] == input.shape[:-1]
    fits_state = z.dim() == 3 and z.shape[1] == state.owner.numel()
    if fits_sequence and fits_state:
        return sequence if sequence.dim == state.dim else None
    return sequence if fits_sequence else state if fits_state else None
