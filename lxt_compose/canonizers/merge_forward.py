"""A canonizer for networks that normalize before they are linear: DenseNet, pre-activation ResNets."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import nn

from ..errors import RegistrationError
from .affine import is_layer, is_norm
from .module_order import taken_after_relu
from .named_pairs import Merged, checked, expanded, submodule, tried
from .shifting import Shift

_DONE = "batch norms merged into the layers after them"


@dataclass(frozen=True)
class MergeBatchNormForward:
    """Merge the shift of batch norms into the layers after them: batch norm, ReLU, convolution.

    ``h = relu(a x + c)`` for each channel, with ``a = gamma / sigma`` and ``c = beta - a mu``, and ``z = W h + b``.
    With ``v = h - c`` it is ``z = W v + b'``, ``b' = b + W c``, and where a unit is active ``v = a x``: it contributes
    ``W a x`` to z, and the shift is a part of the layer's bias. That is a layer of the weight ``W a`` after a ReLU with
    a threshold, ``u = max(x, -c / a)``, or ``min`` for a < 0, whose scale is left where it was: ``v = a u``. Where a
    layer pads h with zeros, v is padded with -c.

    Under :class:`Epsilon` nothing changes: ``R_x = R_v`` where a unit is active, and where it is not v is a constant,
    which keeps its share. A split rule gives a share to each contribution ``W h``; without this canonizer what x gets
    of that is ``a x / (a x + c)``, which has no bound. Parameters and buffers stay as they are, in ``state_dict()``
    too; what the model computes changes by rounding.

    A norm that follows a layer is better merged into that one: ``canonizers=[MergeBatchNorm(),
    MergeBatchNormForward()]``, in this order, leaves the remaining norms to this canonizer. Modules are recognized by
    what they compute, as there; layers are linear ones and convolutions, norms may hold their ReLU (timm's
    BatchNormAct2d).

    Args:
        pairs: names of batch norms and the layers after them, ``[("norm1", "conv1"), ...]``, with ``*`` as in
            :class:`MergeBatchNorm`. None: found by running order; what cannot be merged stays, and the report says why.
            There is a warning where nothing at all is merged.

    Raises:
        TypeError: pairs are not pairs of names.
        ValueError: the two names of a pair have not as many ``*``.
        MatchError: a name is not in the model.
        RegistrationError: a batch norm is in train mode, a named pair cannot be merged, or, in a forward pass, the
            layer takes something else than the output of its batch norm, as it is or after a ReLU.

    Source: Motzkus et al. 2022, section on DenseNet (batch norm, ReLU, convolution); Pahde et al. 2023.
    """

    pairs: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        if self.pairs is not None:
            object.__setattr__(self, "pairs", checked(self.pairs, "[('norm1', 'conv1')]"))

    def apply(self, model: nn.Module) -> Merged:
        """Merge, all or nothing, and return a handle whose ``remove()`` undoes it."""
        if self.pairs is not None:
            named = [pair for patterns in self.pairs for pair in expanded(model, *patterns)]
            return Merged(_DONE, [_named(model, *pair) for pair in named], {})
        found, reasons = taken_after_relu(model, is_norm, is_layer)
        shifts = tried(model, found, Shift, 0, reasons)
        merged = Merged(_DONE, shifts, reasons)
        if not shifts and any(reason != "it is merged already" for reason in reasons.values()):
            warnings.warn(
                f"MergeBatchNormForward merges nothing in {type(model).__name__}; {'; '.join(merged.notes)}",
                stacklevel=2,
            )
        return merged


def _named(model: nn.Module, norm_name: str, layer_name: str) -> Shift:
    norm, layer = submodule(model, norm_name), submodule(model, layer_name)
    if not is_norm(norm):
        reason = f"{type(norm).__name__} has no running_mean and running_var"
    elif not is_layer(layer):
        reason = f"{type(layer).__name__} has no weight of two or more dimensions"
    else:
        try:
            return Shift(norm, layer, norm_name, layer_name)
        except ValueError as misfit:
            reason = str(misfit)
    raise RegistrationError(f"the batch norm {norm_name!r} cannot be merged into {layer_name!r} after it: {reason}")
