"""Relevance inside the model, of the outputs and inputs of modules, read by hooks on the tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..autograd.trees import tensors_in
from ..errors import AttributionError, MatchError
from ..keys import Assignment, Where, match, names_of
from ..runtime.registration import Registration
from ..torch_internals import modes_off
from ..torch_internals.traces import on_cpu
from .axes import BATCH, Dims, check_known, place_of, unit_place
from .layer_dims import LayerDims

INPUT = ":input"


class Neuron(NamedTuple):
    """A latent unit: the layer, its index among the features, its relevance, and the share of it in the layer.

    The share is relative to the sum of absolute relevance of all units of the layer, from -1 to 1.
    """

    layer: str
    unit: int
    relevance: float
    share: float


def top_units(
    layers: Mapping[str, Tensor], dims: Mapping[str, Dims], k: int, n: int, sample: int | None
) -> list[Neuron]:
    """Return the k units of most absolute relevance; see :meth:`Attribution.neurons`.

    Args:
        layers: the relevance of each.
        dims: the names of its dimensions.
        k: how many.
        n: the number of samples.
        sample: one of them alone.

    Raises:
        ValueError: k is no whole number from 1 on, or it is not known which dimension counts the units of a layer.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number from 1 on, got {k!r}")
    found: list[Neuron] = []
    for name, relevance in layers.items():
        units = _units(name, relevance, dims[name], n, sample)
        whole = float(units.abs().sum()) or 1.0
        top = units.abs().topk(min(k, len(units))).indices.tolist()
        found += [Neuron(name, unit, float(units[unit]), float(units[unit]) / whole) for unit in top]
    return sorted(found, key=lambda neuron: -abs(neuron.relevance))[:k]


def _units(name: str, relevance: Tensor, dims: Dims, n: int, sample: int | None) -> Tensor:
    """Return the relevance of each unit of a layer, the mean of samples or that of one."""
    check_known(name, dims, relevance.shape)
    place = unit_place(dims)
    batch = place_of(dims, BATCH)
    if batch is None or relevance.shape[batch] % n or sample is None:
        count = n if batch is not None else 1
    else:
        each = relevance.shape[batch] // n  # windows or patches that count as samples
        relevance, count = relevance.narrow(batch, sample * each, each), 1
    return relevance.double().movedim(place, -1).flatten(0, -2).sum(0) / count


@dataclass(frozen=True)
class Layer:
    """A module to watch: its name, with ``:input`` if its input is meant.

    ``named`` says whether it was asked for by its name, and not by a pattern.
    """

    name: str
    module: nn.Module
    of_input: bool
    named: bool


def blocks(model: nn.Module) -> list[str]:
    """Return the names of the model's repeated blocks, whose outputs are the residual stream of a transformer.

    These are the members of a list of modules (``nn.ModuleList`` or ``nn.Sequential``) of one and the same class that
    has children and is called; of several such lists the one that holds most parameters.

    Args:
        model: any module.

    Returns:
        The names in order, ready for ``layers=``; none if the model has no such list.
    """
    found: list[tuple[int, list[str]]] = []
    for name, module in model.named_modules():
        members = dict(module.named_children()) if isinstance(module, (nn.ModuleList, nn.Sequential)) else {}
        kinds = {type(member) for member in members.values()}
        if len(kinds) == 1 and all(map(_is_block, members.values())):
            size = sum(p.numel() for p in module.parameters())
            found.append((size, [f"{name}.{child}" if name else child for child in members]))
    return max(found, default=(0, []), key=lambda entry: entry[0])[1]


def _is_block(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and not isinstance(module, (nn.ModuleList, nn.ModuleDict))


def find_layers(model: nn.Module, keys: Any) -> list[Layer]:
    """Return the modules that match the keys, in the model's order.

    Args:
        model: the model.
        keys: one key or several: a name, a glob (``*`` matches dots too), a module class or a tuple of them,
            ``where(...)``. A name or glob with ``:input`` at its end stands for what goes into the module.

    Raises:
        TypeError: a key is of a wrong kind.
        MatchError: a name matches no module (the error names the closest), or there is no module of a class.
    """
    several = isinstance(keys, Iterable) and not isinstance(keys, (str, type))
    if isinstance(keys, tuple) and keys and all(isinstance(kind, type) for kind in keys):
        several = False
    names = names_of(model)
    found: dict[tuple[nn.Module, bool], Layer] = {}
    for key in keys if several else (keys,):
        of_input = isinstance(key, str) and key.endswith(INPUT)
        bindings, unmatched = match((Assignment(_checked(key), None),), names, model)
        if unmatched:
            raise MatchError(f"{type(model).__name__} has no module that {unmatched[0]} matches")
        for module, binding in bindings.items():
            name = next((n for n in binding.names if binding.assignment.matches((n,), module)), binding.names[0])
            layer = Layer(name + INPUT * of_input, module, of_input, named=key == name + INPUT * of_input)
            found.setdefault((module, of_input), layer)
    order = {module: place for place, module in enumerate(names)}
    return sorted(found.values(), key=lambda layer: (order[layer.module], not layer.of_input))


def _checked(key: Any) -> Any:
    if isinstance(key, str):
        return key.removesuffix(INPUT)
    if isinstance(key, Where):
        return key
    kinds = key if isinstance(key, tuple) else (key,)
    if kinds and all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in kinds):
        return kinds
    given = "a module itself" if isinstance(key, nn.Module) else repr(key)
    raise TypeError(
        f"a layer is named by its dotted name, a glob, a module class or where(...), got {given} of type "
        f"{type(key).__name__}"
    )


class Recorder:
    """Watches layers during one forward and backward pass after another; keeps numbers, never a graph.

    With ``times_value`` the relevance is the slot times the tensor, else the slot itself.
    """

    def __init__(self, layers: list[Layer], registration: Registration, dims: LayerDims, *, times_value: bool) -> None:
        self._layers, self._registration, self._times_value = layers, registration, times_value
        self._dims = dims
        self._stack = ExitStack()
        self._open = False
        self._calls: dict[str, list[Tensor]] = {}
        self._without: dict[str, str] = {}

    def __enter__(self) -> Recorder:
        if self._layers:
            self._dims.watch(self._stack)
        for layer in self._layers:
            hook = _Hook(self, layer)
            if layer.of_input:  # before the composite's own hook, which exchanges the input
                handle = layer.module.register_forward_pre_hook(hook.before, with_kwargs=True, prepend=True)
            else:
                handle = layer.module.register_forward_hook(hook.after)
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Begin a forward pass."""
        self._calls, self._without, self._open = {}, {}, True
        self._dims.start()

    def again(self) -> None:
        """Begin another backward pass of the same forward pass."""
        for calls in self._calls.values():
            calls[:] = [torch.zeros_like(relevance) for relevance in calls]

    def stop(self) -> None:
        """End the forward pass; later calls are recomputations."""
        self._open = False

    def seen(self, layer: Layer, values: Any) -> None:
        """Note the output (or input) of a layer."""
        if not self._open:
            return
        with modes_off():
            tensor = next((t for t in tensors_in(values) if t.is_floating_point()), None)
            frames = self._registration.session.stack.frames
            around = frames[-1].context.shadowed_by if frames else None
            if tensor is None or around is not None:
                inside = f"it is inside {around or 'the model itself'!r}, which has a rule as a whole"
                self._without[layer.name] = "it holds no floating point tensor" if tensor is None else inside
                return
            calls = self._calls.setdefault(layer.name, [])
            place = len(calls)
            self._dims.asked(_called(layer, place + 1), layer.module, tensor)
            calls.append(torch.zeros(tensor.shape, dtype=tensor.dtype))
            if not tensor.requires_grad:
                return
            # A copy, since the model may go on to change the tensor in place.
            value = tensor.detach().clone() if self._times_value else None

            def keep(slot: Tensor) -> None:
                calls[place] = on_cpu(slot.detach() if value is None else value * slot.detach())

            tensor.register_hook(keep)

    def found(self) -> dict[str, Tensor]:
        """Return the relevance of each layer's tensor; a layer that ran n times has ``name``, ``name#2``, ...

        ``name#n``.

        Raises:
            AttributionError: a layer that was named, or every layer, did not run or is inside of a module with a rule.
        """
        result: dict[str, Tensor] = {}
        for layer in self._layers:
            for number, relevance in enumerate(self._calls.get(layer.name, ()), 1):
                result[_called(layer, number)] = relevance
        missing = [layer for layer in self._layers if layer.name not in self._calls]
        for layer in missing:
            if layer.named or not result:
                why = self._without.get(layer.name, "it did not run in the forward pass")
                raise AttributionError(f"{layer.name} ({type(layer.module).__name__}) has no relevance: {why}")
        return result


def _called(layer: Layer, number: int) -> str:
    return layer.name if number == 1 else f"{layer.name}#{number}"


class _Hook:
    """The hooks of one layer."""

    def __init__(self, recorder: Recorder, layer: Layer) -> None:
        self._recorder, self._layer = recorder, layer

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._recorder.seen(self._layer, (args, kwargs))

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._recorder.seen(self._layer, output)
