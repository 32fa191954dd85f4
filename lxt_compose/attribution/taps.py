"""How what a model is given becomes carriers: floating point inputs as they are, token ids as their embeddings."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.trees import map_tensors
from ..errors import AttributionError, RegistrationError
from ..rules import GRADIENT, Epsilon
from ..runtime.registration import Registration
from ..target_module import explained
from ..torch_internals import modes_off
from .arrangement import Arrangement, arrangement_of, is_symmetric, not_told
from .axis_flow import AxisFlow, follow
from .inputs import Inputs, is_integer, telling


class NotEmbeddedError(AttributionError):
    """Token ids did not go through the layers that were watched."""


class Taps:
    """Makes carriers of what the model is given, and keeps hold of them: context manager around forward passes.

    A floating point input is passed on as a copy, so that a model may change it in place. For token ids it is the
    output of the model's embedding layer that becomes a carrier, cut off from what made it, with the same values.
    """

    def __init__(self, registration: Registration, embeddings: Embeddings) -> None:
        self._registration, self._embeddings = registration, embeddings
        self._stack = ExitStack()
        self._wanted: dict[str, Tensor] = {}
        self._open = False
        self.leaves: dict[str, list[Tensor]] = {}
        self._arranged: dict[int, Arrangement] = {}
        self._orders: dict[str, list[int | None]] = {}

    def __enter__(self) -> Taps:
        for module in self._embeddings.modules:
            self._stack.callback(module.register_forward_hook(self._hook, with_kwargs=True).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def call(self, model: nn.Module, batch: Inputs) -> Any:
        """The output of the model; afterwards ``leaves`` holds the carriers by name.

        Raises:
            AttributionError: the ids went through no embedding layer, or through one inside a module with a rule.
        """
        self._orders = orders_of(model, batch)
        batch = batch.copied()
        self._wanted, self.leaves, self._arranged = batch.ids, {}, {}
        exchanged: dict[int, list[Tensor]] = {}  # a tensor that is given twice is two inputs
        for name, x in batch.carriers.items():
            leaf = _leaf(x)
            self.leaves[name] = [leaf]
            exchanged.setdefault(id(x), []).append(leaf.clone())

        def exchange(value: Any) -> Any:
            waiting = exchanged.get(id(value))
            return waiting.pop(0) if waiting else value

        args, kwargs = map_tensors(exchange, batch.args), map_tensors(exchange, batch.kwargs)
        self._open = True
        try:
            with telling(model, batch):
                output = model(*args, **kwargs)
        except RegistrationError as error:
            if not self.leaves:
                raise self._not_embedded(model) from error
            raise
        finally:
            self._open = False
        if not self.leaves or (self._embeddings.known and self._wanted.keys() - self.leaves.keys()):
            raise self._not_embedded(model)
        return output

    def of_input(self, leaf: Tensor, relevance: Tensor) -> Tensor:
        """The relevance of a leaf, in the order in which the input was given."""
        arranged = self._arranged.get(id(leaf))
        return relevance if arranged is None else arranged.of_ids(relevance)

    def _not_embedded(self, model: nn.Module) -> NotEmbeddedError:
        return NotEmbeddedError(
            f"{type(explained(model)).__name__} ran no embedding layer (nn.Embedding, get_input_embeddings()) on the "
            f"integer input {', '.join(self._wanted)}; pass floating point inputs, such as inputs_embeds="
        )

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The embedding layer has run: its output becomes a carrier if it was run on one of the inputs."""
        if not isinstance(output, Tensor):
            return None
        with modes_off():  # the composite must not take this for a part of the model
            given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and is_integer(x)), None)
            name = None if given is None else self._name_of(given, module)
            if given is None or name is None:
                return None
            self._check_not_shadowed(name)
            leaf = _leaf(output)
            if self._open:  # and not run again by activation checkpointing
                self.leaves.setdefault(name, []).append(leaf)
                self._arrange(name, leaf, given)
            return leaf.clone()

    def _arrange(self, name: str, leaf: Tensor, given: Tensor) -> None:
        """Keep where the ids are in what was embedded.

        Raises:
            AttributionError: that cannot be told.
        """
        ids = self._wanted[name]
        if leaf.shape[:-1] != given.shape:
            return
        found = arrangement_of(given, ids, self._orders.get(name))
        if found is None:
            raise not_told(name, given, ids)
        self._arranged[id(leaf)] = found

    def _name_of(self, given: Tensor, module: nn.Module) -> str | None:
        """Which input the layer was run on: the same memory, else the same values."""
        owners = self._embeddings.owners
        names = [name for name in self._wanted if owners.get(name, module) is module]
        for same in (_same_memory, _same_values):
            for name in names:
                if same(given, self._wanted[name]):
                    return name
        for name in names:
            if arrangement_of(given, self._wanted[name], exact=True):
                return name
        # Some models pad or rearrange their ids before they embed them: whatever the layer runs on first, then.
        return names[0] if self._embeddings.known and names and not self.leaves and self._open else None

    def _check_not_shadowed(self, name: str) -> None:
        """Raise if a rule for a whole module has already begun around the embedding: it saw no relevance go in."""
        reg = self._registration
        frame = next(
            (
                f
                for f in reg.session.stack.frames
                if f.context.shadowed_by is not None and f.context.shadowed_by == f.path
            ),
            None,
        )
        binding = frame.site.binding if frame is not None else None
        if frame is None or binding is None:
            return
        rule = binding.assignment.rule
        if reg.formulation == GRADIENT and isinstance(rule, Epsilon):
            return  # its inside is the plain gradient, wherever it begins
        raise AttributionError(
            f"{name} is embedded inside {frame.path or 'the model itself'!r}, which has {rule} as a whole, so that "
            f"rule would see no relevance go in; bind it to modules after the embedding, or pass inputs_embeds="
        )


def orders_of(model: nn.Module, batch: Inputs) -> dict[str, list[int | None]]:
    """For ids whose values do not tell whether the model transposes them: the order in which it embeds them."""
    batch = batch.copied()
    unclear = {name: x for name, x in batch.ids.items() if is_symmetric(x)}
    if not unclear:
        return {}
    flow = AxisFlow(unclear)
    follow(lambda: model(*batch.args, **batch.kwargs), flow)
    return flow.orders


def _leaf(x: Tensor) -> Tensor:
    leaf = x.detach()
    if leaf.is_inference():
        leaf = leaf.clone()
    return leaf.requires_grad_()


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and a.data_ptr() == b.data_ptr()


def _same_values(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and a.device == b.device and torch.equal(a.flatten().long(), b.flatten().long())


@dataclass(frozen=True)
class Embeddings:
    """The layers that may embed ids.

    ``known`` if the model itself names them; ``owners`` tells which of them embeds which input, where that is known.
    """

    known: bool
    modules: list[nn.Module]
    owners: dict[str, nn.Module]


def find_embeddings(model: nn.Module, inputs: Inputs, *, ask: bool = True) -> Embeddings:
    """The layer that embeds the ids: the one that the model names (if it is asked), else the first that runs on them.

    Where there are several, a forward pass without gradients shows which: positions, say, may have the same values as
    the ids, and be embedded first.
    """
    if not inputs.ids:
        return Embeddings(False, [], {})
    getter = getattr(model, "get_input_embeddings", None) if ask else None
    try:
        named = getter() if callable(getter) else None
    except (NotImplementedError, AttributeError):
        named = None
    modules: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if isinstance(named, nn.Module):
        weight = getattr(named, "weight", None)
        tied = [m for m in modules if m is not named and weight is not None and m.weight is weight]
        return Embeddings(True, [named, *tied], {})  # an encoder and a decoder may have one each, of the same weights
    return Embeddings(False, modules, _first_to_run(model, inputs, modules) if len(modules) > 1 else {})


def _first_to_run(model: nn.Module, inputs: Inputs, modules: list[nn.Module]) -> dict[str, nn.Module]:
    inputs = inputs.copied()
    ran: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        ran.extend((module, x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and is_integer(x))

    with ExitStack() as stack, torch.no_grad(), torch.random.fork_rng(devices=[]):
        for module in modules:
            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        try:
            model(*inputs.args, **inputs.kwargs)
        except Exception:  # the same will be raised by the forward pass that counts
            return {}
    owners: dict[str, nn.Module] = {}
    for same in (_same_memory, _same_values):
        for module, given in ran:
            for name, ids in inputs.ids.items():
                if name not in owners and same(given, ids):
                    owners[name] = module
    return owners
