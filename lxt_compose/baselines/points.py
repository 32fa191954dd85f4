"""Gradients of the explained number at given points: at the input, near it, or on a path to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.axes import BATCH, Dims, embedded, place_of, summed
from ..attribution.failures import telling
from ..attribution.inputs import Inputs
from ..errors import AttributionError, TraceError
from ..evaluate.probe import Probe
from ..torch_internals.traces import on_cpu
from ..tracing import Program

Key = tuple[str, int]
"""The name of an input, and the number of its embedding: a model may have several for the same token ids."""
Place = Callable[[Tensor, Key], Tensor]
"""Maps values [m, ...] of an input (of the embeddings, for token ids) to the point where the gradient is wanted."""
Values = dict[Key, Tensor]


Scores = Tensor | dict[str, Tensor]
"""One number for each token, pixel or feature; of several inputs, by their names."""


class Points(Probe):
    """A :class:`Probe` of all inputs at once that gives gradients too."""

    def gradients(self, place: Place) -> list[tuple[Values, Values]]:
        """Return points and the gradients there, for each batch, on the CPU."""
        return [self._gradients(group, place) for group in self.groups(self.given.count)]

    def mean_gradients(self, places: Sequence[Place], *, traced: bool = False) -> list[Values]:
        """Return the mean of the gradients at several points, for each batch.

        Args:
            places: the points.
            traced: whether the gradients of a batch run as one graph.

        Raises:
            TraceError: they cannot.
        """
        found = []
        for group in self.groups(self.given.count):
            gradients = self._graph(group) if traced else partial(self._gradients, group)
            total: Values = {}
            for place in places:
                part = {key: g / len(places) for key, g in gradients(place)[1].items()}
                total = {key: total[key] + g for key, g in part.items()} if total else part
            found.append(total)
        return found

    def _gradients(self, group: Tensor, place: Place) -> tuple[Values, Values]:
        _, leaves, outputs, seeds = self._pass(group, place, nullcontext)
        slots = torch.autograd.grad(outputs, list(leaves.values()), seeds, allow_unused=True) if leaves else ()
        if all(slot is None for slot in slots):
            raise self._cut_off()
        zipped = zip(leaves.items(), slots, strict=True)
        gradients = {key: on_cpu(torch.zeros_like(x) if slot is None else slot) for (key, x), slot in zipped}
        return {key: on_cpu(x.detach()) for key, x in leaves.items()}, gradients

    def _graph(self, group: Tensor) -> Callable[[Place], tuple[Values, Values]]:
        """Return the gradients of a batch at any points, as a function that runs one graph."""
        if self.given.ids:
            raise TraceError(
                f"ids of {', '.join(self.given.ids)} are looked up anew in each pass, so there is no graph of the "
                f"gradients by their embeddings; give the embeddings themselves (inputs_embeds), or leave traced out"
            )
        _, leaves, *_ = self._pass(group, unmoved, nullcontext)
        start = {key: leaf.detach() for key, leaf in leaves.items()}

        def function(*values: Tensor) -> list[Tensor]:
            at = dict(zip(start, values, strict=True))
            return list(self._gradients(group, lambda _, key: at[key])[1].values())

        try:
            program = Program(function, list(start.values()))
        except Exception as error:  # whatever the model does with tensors that have no values
            said = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            raise TraceError(f"{type(self.model).__name__} cannot be written down as one graph: {said[0]}") from error
        if program.is_random or program.changes_weights:
            raise TraceError("the model draws random numbers or changes its buffers; call model.eval() first")

        def gradients(place: Place) -> tuple[Values, Values]:
            points = {key: place(x, key) for key, x in start.items()}
            found = dict(zip(points, program(*points.values()), strict=True))
            return {key: x.cpu() for key, x in points.items()}, {key: g.cpu() for key, g in found.items()}

        return gradients

    def starts(self) -> list[Values]:
        """Return the inputs themselves, or their embeddings, for each batch, on the CPU."""
        passes = self.passes(unmoved)
        return [{key: leaf.detach().cpu() for key, leaf in leaves.items()} for _, leaves, _, _ in passes]

    def scores(self, batches: Sequence[Values]) -> Scores:
        """Return the score of each input, summed over features: one tensor, or one for each name of several inputs."""
        found: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for values in batches for name, _ in values):
            dims = self.dims_of(name)
            parts = []
            for values in batches:
                each = [summed(value, dims, name) for (owner, _), value in values.items() if owner == name]
                parts.append(torch.stack(each).sum(0))
            shared = place_of(dims, BATCH) is None  # an input that all samples share gets relevance from each
            found[name] = torch.stack(parts).sum(0) if shared else torch.cat(parts)
        return found if len(self.given.ids) + len(self.given.carriers) > 1 else next(iter(found.values()))

    def dims_of(self, name: str) -> Dims:
        """Return the names of the dimensions of an input, or of the embeddings of its ids."""
        dims = self.given.dims[name]
        return embedded(dims) if name in self.given.ids else dims

    def _cut_off(self) -> AttributionError:
        return AttributionError(
            f"no output of {type(self.model).__name__} depends on its inputs: the model cuts them off "
            f"(detach(), torch.no_grad()), so there is no gradient"
        )

    def passes(
        self, place: Place, around: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> Iterator[tuple[Inputs, Values, list[Tensor], list[Tensor]]]:
        """Yield for each batch the inputs, the points as leaves, the explained outputs, and their gradients.

        Args:
            place: where the model is run.
            around: a context for the forward pass.

        Raises:
            AttributionError: the model failed, or its outputs do not depend on its inputs.
        """
        for group in self.groups(self.given.count):
            yield self._pass(group, place, around)

    def _pass(
        self, group: Tensor, place: Place, around: Callable[[], AbstractContextManager[Any]]
    ) -> tuple[Inputs, Values, list[Tensor], list[Tensor]]:
        leaves: Values = {}

        def moved(name: str, values: Tensor, _: Tensor) -> Tensor:
            key = (name, sum(owner == name for owner, _ in leaves))
            leaves[key] = place(values.detach(), key).detach().requires_grad_()
            return leaves[key].clone()  # a model may change its input in place

        with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
            given = self.rows(group, {name: partial(moved, name) for name in self.given.carriers}, group)
            if given.ids:
                self.embed(stack, given, {name: partial(moved, name) for name in given.ids}, group)
            with telling(self.model, given), around():
                output = self.model(*given.args, **given.kwargs)
            chosen = self.choose(group, output, given)
            if not chosen.seeds:
                raise self._cut_off()
            outputs, seeds = (list(each) for each in zip(*chosen.seeds, strict=True))
            return given, leaves, outputs, seeds


def unmoved(values: Tensor, _: Key) -> Tensor:
    """Return the input itself."""
    return values


def points_of(model: nn.Module, inputs: Any, target: Any, batch_size: int | None) -> Points:
    """Return the points of these inputs."""
    with torch.inference_mode(False):
        return Points(model, inputs, target, batch_size)


class Around(nn.Module):
    """A model as a function of its floating point inputs and embeddings alone, whose output is the explained number.

    Args:
        points: the model with its inputs and target.
        keys: the inputs, in the order in which they are given.
    """

    def __init__(self, points: Points, keys: Sequence[Key]) -> None:
        super().__init__()
        self.model, self.keys = points.model, list(keys)
        self._points = points

    def forward(self, *values: Tensor) -> Tensor:
        """Return [m] from the values of each input [m, ...], where m is a multiple of the number of samples."""
        points, count = self._points, self._points.given.count
        rows = max(len(x) for x in values)
        samples = torch.arange(count).repeat(max(1, rows // count))  # inputs are expanded block by block
        waiting = {name: [x for (owner, _), x in zip(self.keys, values, strict=True) if owner == name]
                   for name, _ in self.keys}  # fmt: skip

        def given(name: str, _: Tensor, group: Tensor) -> Tensor:
            return waiting[name].pop(0) if len(waiting[name]) > 1 else waiting[name][0]

        changes = {name: partial(given, name) for name in waiting}
        floats = {name: change for name, change in changes.items() if name in points.given.carriers}
        inputs = points.rows(samples, floats, samples)
        with ExitStack() as stack:
            if inputs.ids:
                points.embed(stack, inputs, {n: c for n, c in changes.items() if n in inputs.ids}, samples)
            output = self.model(*inputs.args, **inputs.kwargs)
        chosen = points.choose(samples, output, inputs)
        numbers: Tensor = torch.stack([(z * seed).reshape(len(samples), -1).sum(1) for z, seed in chosen.seeds]).sum(0)
        return numbers
