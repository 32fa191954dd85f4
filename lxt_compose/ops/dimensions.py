"""Names of dimensions by the operations that work on them: batch, channels, features.

A dimension is named for what it counts. Convolutions and pools name all dimensions, a linear layer only the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .families import Op

SPATIAL = {1: ("time",), 2: ("height", "width"), 3: ("depth", "height", "width")}
"""The names of the dimensions behind the channels, by their number."""

Names = tuple[str | None, ...]
"""One name for each dimension; None where the operation does not say."""

_SLIDING = ("conv", "avg_pool", "max_pool", "dropout", "max_unpool")
_CHANNELS_SECOND = frozenset("batch_norm native_batch_norm instance_norm native_instance_norm group_norm".split())
_FEATURES_LAST = frozenset("linear matmul mm layer_norm rms_norm".split())


def dimensions_of(op: Op, x: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Names | None:
    """Return the names that the operation gives to the dimensions of `x`, or None if it works on any dimensions.

    Args:
        op: the operation.
        x: the tensor that it works on, one of its arguments.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    n = x.dim()
    if op.traits.recurrent and n == 3:
        return _recurrent(args)
    if op.traits.has_projections:
        return {3: ("token", "batch", "feature"), 2: ("token", "feature")}.get(n)
    if op.name == "conv_tbc":
        return ("time", "batch", "channel")
    if op.name in _CHANNELS_SECOND and n >= 2:
        return (None, "channel", *SPATIAL.get(n - 2, (None,) * (n - 2))) if n > 2 else ("batch", "feature")
    if op.name in _FEATURES_LAST and n:
        together = len(_normalized(op, args, kwargs))  # a norm over several dimensions names none
        return (*[None] * (n - 1), "feature") if together == 1 else None
    return _sliding(op.name, n)


def _normalized(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[int]:
    """Return the sizes that a norm over the last dimensions is taken over; one size for all other operations."""
    if not op.name.endswith("_norm"):
        return (1,)
    sizes = kwargs.get("normalized_shape", args[1] if len(args) > 1 else (1,))
    return (sizes,) if isinstance(sizes, int) else tuple(sizes)


def _recurrent(args: Sequence[Any]) -> Names | None:
    """Return the names for a kernel of padded sequences: ``(input, state, weights, ..., batch_first)``."""
    if not isinstance(args[-1], bool):
        return None  # a packed sequence
    return ("batch", "time", "feature") if args[-1] else ("time", "batch", "feature")


def _sliding(name: str, n: int) -> Names | None:
    """Return the names for an operation that slides over one to three dimensions: its name ends in their number."""
    dims = int(name[-2]) if name.endswith(("1d", "2d", "3d")) and any(word in name for word in _SLIDING) else 0
    return ("batch", "channel", *SPATIAL[dims]) if dims and n == dims + 2 else None  # without a batch: a user's word


def new_dimensions(op: Op, names: Sequence[str | None]) -> set[int]:
    """Return which dimensions of the result, which has as many as `x`, are not those of `x`.

    Args:
        op: an operation that :func:`dimensions_of` knows.
        names: the names that it gives to the dimensions of `x`.
    """
    if op.name.startswith(("conv", "linear", "matmul", "mm", "multi_head")) or op.traits.recurrent:
        mixed = {"channel", "feature"}
    else:
        mixed = set()
    slides = any(word in op.name for word in _SLIDING[:3])
    return {place for place, name in enumerate(names) if name in mixed or (slides and name in SPATIAL[3] + SPATIAL[1])}


def dimensions_of_module(module: nn.Module, x: Tensor) -> Names | None:
    """Return the names that a module gives to the dimensions of what it takes in or puts out, or None.

    Convolutions, pools and batch norms are known by their class, what has a weight by its size: the last dimension of
    `x` or, for norms, the one of the channels.
    """
    n = x.dim()
    if n == 3 and isinstance(getattr(module, "batch_first", None), bool):
        kind = "time" if isinstance(module, nn.RNNBase) else "token"
        return ("batch", kind, "feature") if module.batch_first else (kind, "batch", "feature")
    kinds = [kind.__name__.lower() for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.")]
    sliding = next((names for name in kinds if (names := _sliding(name.replace("pool", "_pool"), n))), None)
    if sliding or n < 2:
        return sliding
    normalizes_channels = isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm))
    weight = getattr(module, "weight", None)
    sizes = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    if normalizes_channels or (len(sizes) == 1 and n > 2 and x.shape[1] in sizes and x.shape[-1] not in sizes):
        return (None, "channel", *SPATIAL.get(n - 2, (None,) * (n - 2))) if n > 2 else ("batch", "feature")
    if x.shape[-1] in (*sizes[:2], getattr(module, "out_features", None), getattr(module, "in_features", None)):
        return (*[None] * (n - 1), "feature") if len(sizes) <= 2 else None
    return None
