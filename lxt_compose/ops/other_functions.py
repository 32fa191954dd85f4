"""Functions of torch that are no operations: some cut a tensor off from its graph, others read metadata."""

from collections.abc import Callable
from typing import Any

from .lookup import display_name, plain_name

_CUTS = frozenset(
    """
    Tensor.detach Tensor.detach_ torch.detach torch.detach_copy Tensor.data
    Tensor.item Tensor.tolist Tensor.numpy Tensor.__float__ Tensor.__array__
""".split()
)
_METADATA = frozenset(
    """
    size dim ndimension stride numel nelement element_size storage_offset is_contiguous is_floating_point is_complex
    get_device __len__
""".split()
)


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", ""))


_COMPARISONS = frozenset("eq ne lt le gt ge less less_equal greater greater_equal not_equal".split())


def compares(function: Callable[..., Any]) -> bool:
    """Return whether it compares numbers element by element (``x > 0``)."""
    return (plain_name(function) or "").strip("_") in _COMPARISONS


_FILLS = frozenset("zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full".split())


def fills(function: Callable[..., Any]) -> bool:
    """Return whether it makes a tensor of one number (``torch.zeros_like(x)``)."""
    return (plain_name(function) or "") in _FILLS


def is_attribute(function: Callable[..., Any]) -> bool:
    """Return whether it gets or sets an attribute of a tensor (``Tensor.shape.__get__``)."""
    return _name(function) in ("__get__", "__set__")


def cuts_history(function: Callable[..., Any]) -> bool:
    """Return whether it gives its tensor, or the numbers in it, without the autograd graph."""
    return display_name(function) in _CUTS and _name(function) != "__set__"


def returns_no_tensor(function: Callable[..., Any]) -> bool:
    """Return whether it is a method or an attribute that reads metadata of a tensor: its shape, its dtype."""
    name = display_name(function)
    reads = _name(function) == "__get__" and name != "Tensor.grad_fn" and not cuts_history(function)
    return name.startswith("Tensor.") and (_name(function) in _METADATA or reads)
