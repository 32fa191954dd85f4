"""Visits: a function is called on tensors at places inside a model while it runs, and may replace them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..attribution.axes import Dims, unit_place
from ..attribution.layer_dims import LayerDims
from ..attribution.layer_dims import Met as Shape
from ..autograd.functions import graft
from ..autograd.trees import map_tensors
from ..torch_internals import in_backward, modes_off
from .attention import AttentionSides, key_groups
from .units import Layout, Place


@dataclass(eq=False)
class Visit:
    """One tensor at a place: the number of the call, and the record that tells its dimensions."""

    place: Place
    number: int
    tensor: Tensor
    shape: Shape | None
    dims: Dims | None = None
    groups: int = 1


_WATCHED = ("", "input")
"""The sides whose dimensions are named by modules that run before or after."""

Look = Callable[[Visit], Tensor | None]
"""Takes a visit; returns a replacement of its tensor, or None."""


class Visits:
    """Calls a function on the tensors of places, in every forward pass until it is closed; a context manager.

    Args:
        model: any module.
        places: the places.
        look: the function. It is also called when activation checkpoints recompute tensors in the backward pass.
        differentiable: whether relevance should pass through the codes of dictionaries; else the change of the codes is
            added to the tensor.
        dims: given names of dimensions, by the names of places.
    """

    def __init__(
        self,
        model: nn.Module,
        places: Iterable[Place],
        look: Look,
        *,
        differentiable: bool = False,
        dims: Mapping[str, Dims] | None = None,
    ) -> None:
        self._model, self._places, self._look = model, list(dict.fromkeys(places)), look
        self._differentiable, self._said = differentiable, dims or {}
        self._dims = LayerDims(model, {})
        self._calls: dict[Place, int] = {}
        self._known: dict[tuple[Place, int], Dims] = {}
        self._stack, self._watching = ExitStack(), ExitStack()

    def __enter__(self) -> Visits:
        with ExitStack() as stack:
            self._watching = stack.enter_context(ExitStack())
            self._dims.watch(self._watching)
            stack.callback(self._model.register_forward_pre_hook(self._start, prepend=True).remove)
            attention: dict[nn.Module, list[Place]] = {}
            for place in self._places:
                if place.dictionary is not None:
                    stack.enter_context(place.dictionary.frozen())
                hook = _Hook(self, place)
                if place.side == "input":
                    handle = place.module.register_forward_pre_hook(hook.before, with_kwargs=True, prepend=True)
                elif not place.side:
                    handle = place.module.register_forward_hook(hook.after)
                else:
                    attention.setdefault(place.module, []).append(place)
                    continue
                stack.callback(handle.remove)
            for module, places in attention.items():
                sides = _Sides(self, places)
                stack.callback(sides.close)
                stack.callback(module.register_forward_pre_hook(sides.before).remove)
                stack.callback(module.register_forward_hook(sides.after, prepend=True, always_call=True).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything off the model."""
        self._stack.close()

    def _start(self, *_: object) -> None:
        if not in_backward():
            self._calls.clear()
            self._dims.start()

    def layout(self, visit: Visit) -> Layout:
        """Return the layout of a visited tensor: now, or once more of the model has run.

        Raises:
            AttributionError: it is unknown.
        """
        name, key = visit.place.name, (visit.place, visit.tensor.dim())
        dims = visit.dims or self._said.get(name) or self._known.get(key)
        if dims is None:
            assert visit.shape is not None
            dims = self._dims.of(visit.shape)
        found = Layout.of(name, visit.tensor.shape, dims, visit.groups)
        if visit.dims is None:
            self._known[key] = dims
            if {place for place, _ in self._known} >= {place for place in self._places if place.side in _WATCHED}:
                self._watching.close()  # all layouts are known
        return found

    def visit(self, place: Place, x: Tensor, dims: Dims | None = None, groups: int = 1) -> Tensor | None:
        """Call the function on a tensor, or on its codes; return a replacement, or None."""
        number = self._calls[place] = self._calls.get(place, 0) + 1
        if place.call is not None and place.call != number and not in_backward():
            return None
        with modes_off():
            shape = self._dims.met(place.module, x) if dims is None else None
        if place.dictionary is None:
            return self._look(Visit(place, number, x, shape, dims, groups))
        unit = unit_place(self.layout(Visit(place, number, x, shape, dims)).dims)
        codes = place.dictionary.encode(x.movedim(unit, -1))
        last = (*(name for d, name in enumerate(self._dims_of(place, x, shape, dims)) if d != unit), "feature")
        other = self._look(Visit(place, number, codes, None, last))
        if self._differentiable:
            way = place.dictionary.decode(codes if other is None else other).movedim(-1, unit)
            return graft(x, way + (x - way).detach())
        if other is None:
            return None
        change = place.dictionary.decode(other) - place.dictionary.decode(codes)
        return x + change.movedim(-1, unit)

    def _dims_of(self, place: Place, x: Tensor, shape: Shape | None, dims: Dims | None) -> Dims:
        return self.layout(Visit(place, 0, x, shape, dims)).dims


class _Hook:
    """The hooks of a place that is the output or the input of a module."""

    def __init__(self, visits: Visits, place: Place) -> None:
        self._visits, self._place = visits, place

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._first((args, kwargs))

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self._first(output)

    def _first(self, values: Any) -> Any:
        """Visit the first floating point tensor; return the values with its replacement, or None."""
        done = False

        def visited(x: Tensor) -> Tensor:
            nonlocal done
            if done or not x.is_floating_point():
                return x
            done = True
            other = self._visits.visit(self._place, x)
            return x if other is None else other

        changed = map_tensors(visited, values)
        return None if changed is values else changed


class _Sides:
    """The hooks of a module in which attention runs, whose sides are visited."""

    def __init__(self, visits: Visits, places: list[Place]) -> None:
        self._visits, self._places = visits, places
        self._queries: int | None = None
        self._module = places[0].module
        self._on: list[AttentionSides] = []

    def before(self, *_: object) -> None:
        self._queries = None
        self._on.append(AttentionSides(self._visit))
        self._on[-1].start()

    def after(self, *_: object) -> None:
        if self._on:
            self._on.pop().stop()

    def _visit(self, side: str, x: Tensor, dims: Dims) -> Tensor | None:
        self._queries = x.shape[1] if side == "query" else self._queries
        groups = key_groups(self._module, x, self._queries) if side in ("key", "value") else 1
        found: Tensor | None = None
        for place in self._places:
            if place.side == side:
                other = self._visits.visit(place, x, dims, groups)
                found, x = (found, x) if other is None else (other, other)
        return found

    def close(self) -> None:
        """Stop watching where an interrupt has skipped the hooks."""
        while self._on:
            self._on.pop().stop()
