"""A function of tensors traced as one graph, which can be run, differentiated, or compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import TraceError
from ..torch_internals.ambient import without_autocast
from ..torch_internals.readings import WatchingModels, noting_readings
from ..torch_internals.traces import (
    Names,
    as_compilers_see,
    compiled,
    differentiable_graph_of,
    graph_of,
    symbolic_graph_of,
    tree_flatten,
    tree_unflatten,
)
from .bindings import bind
from .choices import has_choices, take_one
from .fixed_memory import FixedMemory, record_on_gpu
from .hoisting import Prologue, split
from .model_state import ModelState
from .passes import changes_attributes, is_random, simplify, without_second_names
from .recompute import recompute
from .reuse import reuse
from .shapes_only import without_values
from .writes import without_copies, without_writes

Function = Callable[..., Any]
_BINDING = Lock()


class Program:
    """One graph of a function of tensors, whose weights are the model's own tensors, not copies.

    ``is_random`` says whether the graph draws random numbers, ``changes_weights`` whether it changes a tensor in place
    that it did not make.

    Args:
        function: takes tensors, and returns tensors in nested tuples, lists or dicts.
        inputs: example inputs, with which it is traced.
        names: the names of the dimensions of each input that may be of any size; None for a size that is fixed.
        compiling: whether the function sees `torch.compiler.is_compiling()`.
        differentiable: whether the graph is to be differentiated, so that nothing in it is changed in place.

    Raises:
        Exception: whatever the function raises where it needs the values of tensors.
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Tensor],
        names: Sequence[Names] | None = None,
        *,
        compiling: bool = False,
        differentiable: bool = False,
    ) -> None:
        names = [[None] * x.dim() for x in inputs] if names is None else names
        self.dynamic = any(name is not None for dims in names for name in dims)
        self._holds: Callable[[Mapping[str, int]], bool] = lambda sizes: True
        with as_compilers_see() if compiling else nullcontext(), noting_readings() as readings:
            if self.dynamic:
                self.graph, self._holds = symbolic_graph_of(self._flat(function), inputs, names)
            else:
                self.graph = graph_of(self._flat(function), inputs)
        self._readings = [*readings.values()]
        without_second_names(self.graph)
        without_writes(self.graph.graph)
        without_copies(self.graph.graph)
        simplify(self.graph)
        self.is_random, self.changes_weights = is_random(self.graph.graph), changes_attributes(self.graph.graph)
        if differentiable:
            self.graph = differentiable_graph_of(self.graph, inputs)
            simplify(self.graph)
        self._run: Callable[..., Sequence[Tensor]] | None = None
        self._prologue: Prologue | None = None
        self._known: dict[tuple[tuple[str, int], ...], bool] = {}

    def _flat(self, function: Function) -> Function:
        """Return the function with its outputs in one list, and keep how they are nested."""

        def flat(*inputs: Tensor) -> list[Tensor]:
            with WatchingModels():
                outputs, self._nesting = tree_flatten(function(*inputs))
            return outputs

        return flat

    def changed(self) -> Tensor | None:
        """Return a tensor whose values the trace depended on, and which have changed since; None if there is none."""
        return next((reading.tensor for reading in self._readings if not reading.holds()), None)

    def nested(self, outputs: Sequence[Tensor]) -> Any:
        """Return the outputs of the graph, nested as the function had them."""
        return tree_unflatten(list(outputs), self._nesting)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Return whether the graph is right for these sizes of the dimensions that have names."""
        key = tuple(sizes.items())
        if key not in self._known:
            self._known[key] = self._holds(sizes)
        return self._known[key]

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the graph; nothing is recorded for a backward pass."""
        with torch.no_grad(), without_autocast():
            if self._run is None or self._prologue is None:
                with _BINDING:
                    self._bound(inputs)
            assert self._run is not None and self._prologue is not None  # noqa: PT018
            return self.nested(self._run(*self._prologue.values(), *inputs))

    def _bound(self, inputs: Sequence[Tensor]) -> None:
        """Make the function that calls run, unless another thread has."""
        if self._run is not None:
            return
        prologue, rest = split(self.graph)
        take_one(rest)
        without_values(rest.graph)
        recompute(rest)
        reuse(rest)
        bind(rest, *prologue.values(), *inputs)
        self._prologue, self._run = prologue, rest

    def differentiable(self, *inputs: Tensor) -> Any:
        """Run the graph such that what it returns can be differentiated, by its weights too."""
        with torch.enable_grad(), without_autocast():
            return self.nested(self.graph(*inputs))

    def compile(self, *inputs: Tensor, **options: Any) -> None:
        """Compile the graph with torch's compiler; calls run the compiled graph from now on.

        Args:
            inputs: an example.
            options: of the compiler (`torch._inductor.list_options()` names them).
        """
        with torch.no_grad():
            self._prologue, rest = split(self.graph)
            self._run = compiled(rest, [*self._prologue.values(), *inputs], dynamic=self.dynamic, options=options)

    def record(self, *inputs: Tensor, record: Callable[[Function], Any] = record_on_gpu) -> None:
        """Record the graph, compiled or not, as a CUDA graph; calls replay that from now on.

        Args:
            inputs: an example, on the GPU.
            record: runs a function, and returns a function that replays it, with the results.

        Raises:
            TraceError: the graph is for any shape, chooses by data, or does not run on a GPU.
        """
        on_gpu = record is not record_on_gpu or all(x.is_cuda for x in inputs)
        why = (
            (self.dynamic, "it is for any shape; trace it for one shape"),
            (has_choices(self.graph), "it takes one of several ways by the data, which only the processor can tell"),
            (not on_gpu, f"it runs on {inputs[0].device if inputs else 'no device'}; move model and inputs to a GPU"),
        )
        for refused, said in why:
            if refused:
                raise TraceError(f"the graph cannot be recorded as a CUDA graph: {said}")
        self(*inputs)
        assert self._run is not None and self._prologue is not None  # noqa: PT018
        kept, run = len(self._prologue.values()), self._run
        replayed = FixedMemory(run, kept, record)
        try:
            with torch.no_grad():
                replayed(*self._prologue.values(), *inputs)
        except RuntimeError as error:
            said = str(error).strip().splitlines()[0][:300]
            raise TraceError(f"the graph cannot be recorded as a CUDA graph: {said}") from error
        self._run = replayed


class Written(NamedTuple):
    """A graph, and the state of the model that it was written down for."""

    program: Program
    state: ModelState

    def holds(self) -> bool:
        """Return whether it is what would be written down now."""
        return self.program.changed() is None and not self.state.change()
