"""Layouts of samples, followed from the inputs through every operation of a forward pass.

A batch does not stay in front: attention merges it with the heads, ``[T, B, d]`` has it second, a router of experts
picks rows from all samples. So each tensor has a *layout*: one dimension, and the sample of each slice along it. In a
view it is read off strides and sizes. Other operations that move elements are run once more on the samples' codes in
place of values; all the others keep the dimension. Otherwise the layout is unknown (None).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..ops import Elements, Family, Op
from .layouts import Layout, by_strides, in_order, of_one, sole_owner
from .recurrent_layouts import after_recurrent
from .sample_codes import by_codes, rerun


def layouts_after(
    op: Op | None,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    known: Sequence[tuple[Tensor, Layout | None]],
    outputs: Sequence[Tensor],
    samples: int,
) -> list[Layout | None]:
    """Return the layouts of the outputs of an operation.

    Args:
        op: the operation; None for one without a family, and for a module taken as one operation.
        function: what was called.
        args: its arguments as they were given.
        kwargs: its keyword arguments.
        known: the carriers and their layouts; tensors that all samples share (a bias) have None.
        outputs: the output tensors, and tensors that were changed in place.
        samples: how many samples there are.
    """
    layouts = [(x, layout) for x, layout in known if layout is not None]
    if samples == 1 or not layouts:
        return [None] * len(outputs)
    x, layout = layouts[0]
    if op is None:
        return _after_unknown(layouts, outputs, samples)
    if op.traits.recurrent:
        return after_recurrent(args, layouts, outputs)
    elements = op.traits.elements
    if elements is Elements.SAME_PLACE and all(z.shape == x.shape for z in outputs):
        return [layout] * len(outputs)
    if op.family is Family.MOVEMENT and len(known) == 1 and all(z is not x for z in outputs):
        viewed = [by_strides(x, layout, z) for z in outputs]
        if None not in viewed:
            return viewed
        if elements is Elements.SAME_ORDER and len(outputs) == 1:
            return [in_order(layout, x.shape, outputs[0].shape, samples)]
    if elements is Elements.JOINED and _joins_beside(layouts, args, kwargs):
        return [layout] * len(outputs)
    if op.family is Family.MOVEMENT or elements is Elements.AVERAGED:
        function = op.traits.element_sum or function
        moved = partial(rerun, op, function, args, kwargs)
        return by_codes(moved, known, outputs, samples, averaged=elements is Elements.AVERAGED)
    alone = sole_owner(layouts) if len(layouts) == len(known) else None
    if alone is not None:
        return [of_one(alone, z) for z in outputs]
    if elements is Elements.MIXED and not _keeps_rows(layouts, args):
        return [None] * len(outputs)
    return [_kept(op, layouts, z) for z in outputs]


def _after_unknown(
    layouts: list[tuple[Tensor, Layout]], outputs: Sequence[Tensor], samples: int
) -> list[Layout | None]:
    """Return the layouts of what an operation without a family puts out: with the samples in front, if so given."""
    front = all(layout.plain and layout.dim == 0 for _, layout in layouts)
    front = front and all(z.dim() and z.shape[0] == samples for z in outputs)
    return [layouts[0][1] if front else _kept(None, layouts, z) for z in outputs]


def _keeps_rows(layouts: Sequence[tuple[Tensor, Layout]], args: tuple[Any, ...]) -> bool:
    """Return whether samples stay apart where rows are combined: before the last two dimensions, or with a constant."""
    (x, layout), *others = layouts
    first_of_two = bool(args) and x is args[0] and len(args) > 1 and isinstance(args[1], Tensor)
    return all(layout.dim < x.dim() - 2 for x, layout in layouts) or (first_of_two and not others and layout.dim == 0)


_ALIGNED_RIGHT = (Family.PRODUCT, Family.CONTRACTION, Family.DIVISION, Family.ACTIVATION)


def _kept(op: Op | None, layouts: list[tuple[Tensor, Layout]], z: Tensor) -> Layout | None:
    """Return the layout of an output whose batch dimension is that of the inputs; None where they do not agree."""
    found: list[Layout] = []
    for x, layout in layouts:
        if z.dim() == x.dim():
            dim = layout.dim
        elif op is not None and (op.family in _ALIGNED_RIGHT or op.traits.elements is Elements.BROADCAST):
            dim = layout.dim + z.dim() - x.dim()
        else:
            fitting = [d for d, size in enumerate(z.shape) if size == layout.owner.numel()]
            dim = fitting[0] if len(fitting) == 1 else -1
        if not 0 <= dim < z.dim() or z.shape[dim] != layout.owner.numel():
            return None
        found.append(layout.moved(dim))
    return found[0] if all(layout.same(found[0]) for layout in found) else None


def _joins_beside(layouts: Sequence[tuple[Tensor, Layout]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether tensors are joined along a dimension in which no sample differs from another."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    x, layout = layouts[0]
    return isinstance(dim, int) and dim % x.dim() != layout.dim and all(layout.same(other) for _, other in layouts)
