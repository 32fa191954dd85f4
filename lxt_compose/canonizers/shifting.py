"""Moving the shift of one batch norm into the bias of a layer after it, without a change of parameters or buffers.

The layer finds its new bias under the name ``bias`` in its own ``__dict__``, as merged layers do, and no padding in the
place of its own: its input is padded before. Copies and pickles of the model find the original values.
"""

from __future__ import annotations

import copy
import threading
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import RegistrationError
from ..torch_internals import clear_hooks, modes_off, pre_hooks_of
from ..torch_internals.traces import is_traced
from .affine import groups_of, own
from .merging import eps_of
from .named_pairs import shown
from .stand_ins import NoPadding, StandIn, StandInHook, drop_stand_ins

_TOLERANCE = 1e-9


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a norm with its running statistics, in float64 (float32 on a device without it)."""
    mean, variance = own(norm, "running_mean"), own(norm, "running_var")
    assert mean is not None
    assert variance is not None
    wide = torch.float32 if mean.device.type == "mps" else torch.float64
    weight, bias = own(norm, "weight"), own(norm, "bias")
    scale = (variance.detach().to(wide) + eps_of(norm)).rsqrt()
    scale = scale if weight is None else scale * weight.detach().to(wide)
    shift = -mean.detach().to(wide) * scale
    return scale, shift if bias is None else shift + bias.detach().to(wide)


def bias_with(shift: Tensor, layer: nn.Module, bias: Tensor | None) -> Tensor:
    """Return ``b + W c`` for a shift c of each input channel, the weight that the layer finds now, and its bias b."""
    weight: Any = layer.weight
    sums = weight.detach().to(shift.dtype).flatten(2).sum(-1) if weight.dim() > 2 else weight.detach().to(shift.dtype)
    groups = groups_of(layer)
    moved = torch.einsum("goi,gi->go", sums.unflatten(0, (groups, -1)), shift.reshape(groups, -1)).flatten()
    total = moved if bias is None else moved + bias.detach().to(shift.dtype)
    return total.to(weight.dtype)


def padding_of(layer: nn.Module) -> list[int]:
    """Return the zeros that a layer pads its input with, as ``F.pad`` takes them; empty if it pads no zeros.

    Raises:
        ValueError: the layer pads in an unknown way.
    """
    given: Any = layer.__dict__.get("padding", ())
    if getattr(layer, "padding_mode", "zeros") != "zeros" or given == "valid":
        return []
    if given == "same":
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]  # type: ignore[arg-type]
        sides = [(span // 2, span - span // 2) for span in spans]
    elif isinstance(given, tuple) and all(isinstance(size, int) for size in given):
        sides = [(size, size) for size in given]
    else:
        raise ValueError(f"its padding is {given!r}")
    pads = [size for both in reversed(sides) for size in both]
    return pads if any(pads) else []


def _shifted(h: Tensor, shift: Tensor, pads: list[int], dims: int) -> Tensor:
    """Return ``pad(h) - c``, c for each channel, which `dims` dimensions follow."""
    padded = F.pad(h, pads) if pads else h
    return padded - shift.to(h.dtype).reshape(-1, *[1] * dims)


def _grid(x: Tensor) -> Tensor:
    """Return some elements from all over a tensor."""
    return x[tuple(slice(None, None, max(1, size // 8)) for size in x.shape)].detach().clone()


def _close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


class Shift:
    """A batch norm and a layer that takes its output; moved from :meth:`install` until its stack is closed.

    Raises:
        ValueError: the shift cannot be moved; the message is the reason.
    """

    is_identity = False  # the norm keeps its scale

    def __init__(self, norm: nn.Module, layer: nn.Module, norm_name: str, layer_name: str) -> None:
        self.norm, self.layer, self.norm_name, self.layer_name = norm, layer, norm_name, layer_name
        for module in (norm, layer):
            if not any(isinstance(value, StandIn) for value in vars(module).values()):
                drop_stand_ins(module)  # a copy of a canonized model that has not run yet
        if isinstance(norm.__dict__.get("running_mean"), StandIn):
            raise ValueError("it is merged already")
        if any(getattr(hook, "note", "") for hook in pre_hooks_of(layer)):
            raise ValueError(f"the shift of a batch norm is moved to {layer_name} already")
        self._pads, self._dims = padding_of(layer), 0
        self._try()
        self._last = threading.local()
        self._stamp: tuple[Any, ...] = ()
        self._bias: StandIn | None = None
        self._in_graph: Tensor | None = None
        """The bias in the graph that was traced last."""
        self._base: Any = None

    def __str__(self) -> str:
        return shown(self.norm_name, self.layer_name)

    def _try(self) -> None:
        """Raise if copies compute something else with the shift moved; they run on numbers without a pattern."""
        weight: Any = getattr(self.layer, "weight", None)
        if own(self.norm, "running_mean") is None or own(self.norm, "running_var") is None:
            raise ValueError("no running statistics, so each batch is normalized by its own")
        shift = affine_of(self.norm)[1].cpu()
        if not isinstance(weight, Tensor) or weight.shape[1] * groups_of(self.layer) != shift.numel():
            raise ValueError(f"it normalizes {shift.numel()} channels, and {self.layer_name} takes another number")
        if "bias" not in self.layer._parameters:
            raise ValueError(f"{self.layer_name} has no place for a bias")
        self._dims = weight.dim() - 2
        if weight.is_meta:
            return
        try:
            reason = self._reason_against(shift, [3 * size + 8 for size in weight.shape[2:]])
        except Exception as error:  # the model's own code, which was not written for this, may raise anything
            reason = f"a trial raised {type(error).__name__}: {error}"
        if reason:
            raise ValueError(reason)

    @torch.no_grad()
    def _reason_against(self, shift: Tensor, sizes: list[int]) -> str:
        """Return a reason if copies of both (float64, without hooks) compute something else; empty if they do not."""
        twins = copy.deepcopy(nn.ModuleList([self.norm, self.layer])).to("cpu", torch.float64).eval()
        clear_hooks(twins)
        norm, layer = twins
        shape = torch.Size((2, shift.numel(), *sizes))
        x = 2 * torch.arange(1.0, 1 + shape.numel(), dtype=torch.float64).square().sin().reshape(shape)
        scale, exact = (part.reshape(-1, *[1] * self._dims) for part in affine_of(norm))
        with modes_off():
            y, affine = norm(x), x * scale + exact
            if not (_close(y, affine) or _close(y, affine.relu())):
                return "it computes something else than a * x + c for each channel, with or without a ReLU"
            h = y.relu()
            expected = layer(h)
            layer.__dict__["bias"] = bias_with(shift, layer, own(layer, "bias"))
            if self._pads:
                layer.__dict__["padding"] = (0,) * len(sizes)
            found = layer(_shifted(h, shift, self._pads, self._dims))
        return "" if _close(found, expected) else f"with the shift moved, {self.layer_name} computes something else"

    def install(self, stack: ExitStack) -> None:
        """Move the shift, and put the callback that undoes it on the stack."""
        stack.callback(self._restore_bias)
        if self._pads:
            padding = self.layer.__dict__["padding"]
            stack.callback(self.layer.__dict__.__setitem__, "padding", padding)
            self.layer.__dict__["padding"] = NoPadding.of(padding, self._dims)
        self._move()
        note = f"its shift is moved to {self.layer_name}; name MergeBatchNorm() before MergeBatchNormForward()"
        for handle in (
            self.norm.register_forward_hook(StandInHook(self._after_norm, note)),
            self.layer.register_forward_pre_hook(StandInHook(self._before_layer, note)),
        ):
            stack.callback(handle.remove)

    def _restore_bias(self) -> None:
        if self._is_ours(self.layer.__dict__.get("bias")):
            self.layer.__dict__.pop("bias", None)
            if self._base is not None:
                self.layer.__dict__["bias"] = self._base

    def _is_ours(self, bias: Tensor | None) -> bool:
        return bias is self._bias or bias is self._in_graph

    @torch.no_grad()
    def _move(self) -> None:
        """Set the bias of the layer for the values that both modules have now."""
        found = self.layer.__dict__.get("bias")
        base = self._base if self._is_ours(found) else found  # in a merged layer, that of the merged one
        bias = own(self.layer, "bias") if base is None else base
        if is_traced():  # what computes it is a part of the graph
            self._shift, self._stamp = affine_of(self.norm)[1], ()
            self.layer.__dict__["bias"] = self._in_graph = bias_with(self._shift, self.layer, bias)
            return
        stamp = tuple(
            (id(tensor), None if tensor.is_inference() else tensor._version, tensor.data_ptr())
            for tensor in (*self.norm.parameters(), *self.norm.buffers(), self.layer.weight, bias)
            if isinstance(tensor, Tensor)
        )
        if found is self._bias and stamp == self._stamp:
            return
        self._shift = affine_of(self.norm)[1]
        self._base, self._stamp = base, stamp
        total = bias_with(self._shift, self.layer, bias)
        self._bias = StandIn.of(total, own(self.layer, "bias"), torch.zeros_like(total) if bias is None else bias)
        self.layer.__dict__["bias"] = self._bias

    def _after_norm(self, args: tuple[Any, ...], output: Tensor) -> None:
        with modes_off():
            self._last.output = output.shape, _grid(output)

    def _before_layer(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Raise if the two modules have changed, and take the shift off the layer's input."""
        if self.norm.training:
            raise RegistrationError(
                f"{self.norm_name!r} was put into train mode while its shift is in {self.layer_name!r}; call eval(), "
                f"or remove() the registration before training"
            )
        with modes_off():
            taken = bool(args) and self._is_taken(args[0])
            self._move()
        if not taken:
            raise RegistrationError(
                f"the shift of {self.norm_name!r} is moved to {self.layer_name!r}, which takes something else than "
                f"its output, as it is or after a ReLU; name the pairs: MergeBatchNormForward(pairs=[...])"
            )
        return _shifted(args[0], self._shift, self._pads, self._dims), *args[1:]

    def _is_taken(self, h: Any) -> bool:
        """Return whether this is the norm's output, unchanged or after a ReLU, with the channels in place."""
        if not isinstance(h, Tensor) or not hasattr(self._last, "output"):
            return False
        shape, seen = self._last.output
        if h.shape != shape or h.dim() != self._dims + 2:
            return False
        if is_traced():  # without values, which an eager pass has compared
            return True
        given = _grid(h)
        return torch.equal(given, seen) or torch.equal(given, seen.relu())
