"""Merging one batch norm into the layer before it, without a change of parameters, buffers or modules.

A merged layer finds its merged weight under the name ``weight`` in its own ``__dict__``, where Python looks first; its
parameters stay where they are. Copies and pickles of the model find the original values.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RegistrationError
from ..torch_internals import hooks_of, pre_hooks_of
from ..torch_internals.traces import is_traced
from .affine import Layout, Trial, groups_of, layouts_of, outputs_of, own
from .named_pairs import shown
from .stand_ins import StandIn, StandInHook, drop_stand_ins

Values = dict[str, Tensor]


def merged(layer: nn.Module, norm: nn.Module, layout: Layout) -> Values:
    """Return weight and bias of the layer that computes ``norm(layer(x))`` for a norm with its running statistics.

    ``W' = W * gamma / sigma`` for each output channel, ``b' = (b - mu) * gamma / sigma + beta``,
    ``sigma = sqrt(var + eps)``; computed in float64 (float32 on a device without it) and rounded to the weight's dtype.
    """
    weight = own(layer, "weight")
    assert weight is not None
    wide = torch.float32 if weight.device.type == "mps" else torch.float64

    def widened(module: nn.Module, name: str, default: float) -> Tensor:
        value = own(module, name)
        return weight.new_tensor(default, dtype=wide) if value is None else value.detach().to(wide)

    scale = widened(norm, "weight", 1.0) / (widened(norm, "running_var", 1.0) + eps_of(norm)).sqrt()
    shift = (widened(layer, "bias", 0.0) - widened(norm, "running_mean", 0.0)) * scale + widened(norm, "bias", 0.0)
    scaled = layout(weight.detach().to(wide), scale, groups_of(layer))
    return {"weight": scaled.to(weight.dtype), "bias": shift.to(weight.dtype)}


def neutral(norm: nn.Module) -> Values:
    """Return values that make the norm the identity, ``z / sqrt(1 + eps) * sqrt(1 + eps) + 0``."""
    given = own(norm, "running_var")
    assert given is not None
    zero = torch.zeros_like(given)
    return {"weight": zero + (1 + eps_of(norm)) ** 0.5, "bias": zero, "running_mean": zero, "running_var": zero + 1}


def eps_of(norm: nn.Module) -> float:
    """Return the eps of a norm; torch's default where the norm has no such attribute."""
    eps: Any = getattr(norm, "eps", 1e-5)
    return float(eps)


class Pair:
    """A layer and the batch norm that takes its output; merged from :meth:`install` until its stack is closed.

    Raises:
        ValueError: the two cannot be merged; the message is the reason.
    """

    def __init__(self, layer: nn.Module, norm: nn.Module, layer_name: str, norm_name: str) -> None:
        self.layer, self.norm, self.layer_name, self.norm_name = layer, norm, layer_name, norm_name
        self.nested = norm in layer.children()
        for module in (layer, norm):
            if isinstance(module.__dict__.get("weight"), StandIn) and pre_hooks_of(module):
                raise ValueError("it is merged already")
            noted = [note for hook in hooks_of(module) if (note := getattr(hook, "note", ""))]
            if noted:
                raise ValueError(noted[0])
            drop_stand_ins(module)  # a copy of a merged model that has not run yet
        self._layout, self.is_identity = self._tried()
        self._known = {id(tensor) for tensor in self._sources()}
        self._state: tuple[Any, ...] = ()
        self._last = threading.local()

    def __str__(self) -> str:
        return shown(self.layer_name, self.norm_name)

    def install(self, stack: ExitStack) -> None:
        """Merge the two, and put the callback that undoes it on the stack."""
        for module in (self.layer, self.norm):
            stack.callback(drop_stand_ins, module)
        self._merge()
        before = self.layer.register_forward_pre_hook(StandInHook(self._before_layer))
        stack.callback(before.remove)
        after = self.layer.register_forward_hook(StandInHook(self._after_layer), prepend=True)
        stack.callback(after.remove)
        between = self.norm.register_forward_pre_hook(StandInHook(self._before_norm), with_kwargs=True)
        stack.callback(between.remove)

    @torch.no_grad()
    def _tried(self) -> tuple[Layout, bool]:
        """Return the layout of the weight in which merging changes no value, and whether all of the norm is merged."""
        mean, weight = own(self.norm, "running_mean"), own(self.layer, "weight")
        if mean is None or own(self.norm, "running_var") is None:
            raise ValueError("no running statistics, so each batch is normalized by its own")
        if weight is None:
            raise ValueError(
                f"the weight of {self.layer_name} is computed from others (a parametrization, an adapter); "
                f"make it a parameter first, with torch.nn.utils.parametrize.remove_parametrizations or the like"
            )
        channels, tried = mean.numel(), "one of them is not affine"
        layouts = layouts_of(self.layer, channels)
        if not layouts:
            raise ValueError(
                f"it normalizes {channels} channels, but the layer before has "
                f"{outputs_of(self.layer) or len(weight)} outputs"
            )
        if weight.is_meta:
            return layouts[0][0], not self.nested
        try:
            trial = Trial(self.layer, self.norm)
        except Exception as error:  # modules may hold anything, which may refuse to be copied
            raise ValueError(f"they cannot be copied, to be tried: {type(error).__name__}: {error}") from error
        for layout, inputs in layouts:
            values = merged(trial.layer, trial.norm, layout), neutral(trial.norm)
            tried = trial.reason_against(values, inputs)
            if not tried:
                return layout, trial.is_identity(values[1])
        raise ValueError(tried)

    def _sources(self) -> list[Tensor]:
        found: list[Tensor | None] = []
        for module in (self.layer, self.norm):
            if module._modules:
                found += [*module.parameters(), *module.buffers()]
            else:
                found += [*module._parameters.values(), *module._buffers.values()]
        return [tensor for tensor in found if tensor is not None]

    def _fingerprint(self) -> tuple[Any, ...]:
        tensors = [
            (id(t), None if t.is_inference() else t._version, t.device, t.dtype, t.data_ptr()) for t in self._sources()
        ]
        return (*tensors, eps_of(self.norm))

    @torch.no_grad()
    def _merge(self) -> None:
        """Put the merged values in their places; in a graph that is traced, what computes them is a part of it."""
        traced = is_traced()
        for module, values in (
            (self.layer, merged(self.layer, self.norm, self._layout)),
            (self.norm, neutral(self.norm)),
        ):
            for name, value in values.items():
                module.__dict__[name] = value if traced else StandIn.of(value, own(module, name))
        self._state = () if traced else self._fingerprint()

    def _before_layer(self, args: tuple[Any, ...]) -> None:
        """Raise if the two can no longer be merged, and merge anew if their values have changed."""
        if self.norm.training:
            raise RegistrationError(
                f"{self.norm_name!r} was put into train mode while it is merged into {self.layer_name!r}; call eval(), "
                f"or remove() the registration before training"
            )
        if is_traced():
            self._merge()
            return
        if self._fingerprint() == self._state:
            return
        strangers = [tensor for tensor in self._sources() if id(tensor) not in self._known]
        if any(tensor.requires_grad for tensor in strangers):
            raise RegistrationError(
                f"a parameter of {self.layer_name!r} or {self.norm_name!r} carries relevance, but both are merged, and "
                f"merged values are constants; name the pairs to be merged without these two"
            )
        try:
            for module in (self.layer, self.norm):
                drop_stand_ins(module)
            self._layout, _ = self._tried()
        except ValueError as reason:
            raise RegistrationError(
                f"{self.norm_name!r} was merged into {self.layer_name!r}, and cannot be with their new values: "
                f"{reason}; remove() the registration, and register again"
            ) from None
        self._merge()

    def _after_layer(self, args: tuple[Any, ...], output: Tensor) -> None:
        """Note the output of the layer, before hooks of the user, which may change it."""
        self._last.output, self._last.version = weakref.ref(output), output._version

    def _before_norm(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.nested:
            return
        given = args[0] if args else next(iter(kwargs.values()), None)
        last = getattr(self._last, "output", None)
        if last is None or last() is not given or given._version != self._last.version:
            raise RegistrationError(
                f"{self.norm_name!r} is merged into {self.layer_name!r}, but takes something else than its output, or "
                f"a hook changes that; name the pairs that follow each other: MergeBatchNorm(pairs=[...])"
            )
        weight = own(self.layer, "weight")
        if weight is not None and weight.dim() == 2 and given.dim() != 2:
            raise RegistrationError(
                f"{self.norm_name!r} normalizes dimension 1 of {tuple(given.shape)}, which is not the dimension of the "
                f"outputs of {self.layer_name!r}, so they cannot be merged; leave the pair out"
            )
