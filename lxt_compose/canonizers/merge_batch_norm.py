"""The canonizer that merges batch norms into the layers before them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import nn

from ..errors import RegistrationError
from .affine import is_layer, is_norm, norms_inside
from .merging import Pair
from .module_order import followed_by
from .named_pairs import Merged, checked, expanded, submodule, tried

_DONE = "batch norms merged"


@dataclass(frozen=True)
class MergeBatchNorm:
    """Merge batch norms into the linear layers before them, so that a rule sees one linear layer.

    ``y = (W x + b - mu) / sigma * gamma + beta`` with ``sigma = sqrt(var + eps)`` is the layer ``y = W' x + b'`` with
    ``W' = W * gamma / sigma`` for each output channel and ``b' = (b - mu) * gamma / sigma + beta``; the batch norm
    becomes the identity. Parameters and buffers stay as they are, in ``state_dict()`` too: the two modules find the
    merged values in their place. A weight that changes meanwhile is merged anew.

    Modules are recognized by what they compute, not by their class: copies of the layer and the norm run on numbers
    with their own and with merged values, and are merged if both give the same. So this serves linear layers on [batch,
    features], convolutions and transposed ones, with padding of their own (timm's "SAME" padding), norms that are
    frozen, and norms with an activation inside (timm's BatchNormAct2d), which keeps its own rule. Layers whose weight
    is computed from others (parametrizations, weight norm, adapters) stay as they are.

    Args:
        pairs: names of layers and their batch norms, ``[("conv1", "bn1"), ...]``; ``("*.conv", "*.bn")`` is each layer
            of that kind of name with the batch norm beside it, where there is one. None: found by running order, from
            a symbolic trace of the model or its parts; what cannot be merged stays, and the report says why. There is a
            warning where nothing at all is merged.

    Raises:
        TypeError: pairs are not pairs of names.
        ValueError: the two names of a pair have not as many ``*``.
        MatchError: a name is not in the model.
        RegistrationError: a batch norm is in train mode, a named pair cannot be merged, or, in a forward pass, the
            batch norm takes something else than the output of its layer.

    Source: Guillemot et al. 2020; Hui and Binder 2019; canonization in general: Pahde et al. 2023.
    """

    pairs: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        if self.pairs is not None:
            object.__setattr__(self, "pairs", checked(self.pairs, "[('conv1', 'bn1')]"))

    def apply(self, model: nn.Module) -> Merged:
        """Merge, all or nothing, and return a handle whose ``remove()`` undoes it."""
        if self.pairs is not None:
            named = [pair for patterns in self.pairs for pair in expanded(model, *patterns)]
            return Merged(_DONE, [_named_pair(model, *pair, named) for pair in named], {})
        found, reasons = followed_by(model, is_layer, is_norm)
        names = {module: name for name, module in model.named_modules()}
        for name, layer in model.named_modules():  # a norm that a layer holds and calls itself
            for norm in norms_inside(layer)[:1]:
                found.append((name, names[norm]))
                reasons.pop(names[norm], None)
        pairs = tried(model, found, Pair, 1, reasons)
        merged = Merged(_DONE, pairs, reasons)
        if reasons and not pairs:
            warnings.warn(
                f"MergeBatchNorm merges nothing in {type(model).__name__}; {'; '.join(merged.notes)}", stacklevel=2
            )
        return merged


def _named_pair(model: nn.Module, layer_name: str, norm_name: str, pairs: list[tuple[str, str]]) -> Pair:
    layer, norm = submodule(model, layer_name), submodule(model, norm_name)
    reason = ""
    if not is_norm(norm):
        reason = f"{type(norm).__name__} has no running_mean and running_var"
    elif not is_layer(layer) and not norms_inside(layer):
        reason = f"{type(layer).__name__} has no weight of two or more dimensions"
    elif sum(module in (layer, norm) for pair in pairs for module in map(model.get_submodule, pair)) > 2:
        reason = "one of them is in several pairs, and a module can be merged once"
    try:
        if not reason:
            return Pair(layer, norm, layer_name, norm_name)
    except ValueError as misfit:
        reason = str(misfit)
    raise RegistrationError(f"the batch norm {norm_name!r} cannot be merged into {layer_name!r}: {reason}")
