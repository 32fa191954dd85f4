"""Operations of a backward pass that take a tensor for its shape and its strides alone."""

from __future__ import annotations

_POOLS = """
    max_pool2d_with_indices_backward max_pool3d_with_indices_backward adaptive_max_pool2d_backward
    adaptive_max_pool3d_backward fractional_max_pool2d_backward fractional_max_pool3d_backward
    avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward
""".split()


def shape_alone(name: str) -> str | None:
    """Return the argument of an operation of ATen whose values it does not read; None if it has none such."""
    return "self" if name in _POOLS else None
