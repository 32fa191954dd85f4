"""The attribution of a model as one graph, called like a function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import attrgetter, eq
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd.trees import tensors_in
from ..composite import Composite
from ..coverage.report import CoverageReport
from ..errors import TraceError
from ..runtime.registration import Registration
from ..tracing import trace_with
from .any_size import of_any_size
from .entry import read
from .explained import Explained
from .goals import Goals, read_targets
from .graph_inputs import difference_of_calls, exchanged, indices_of, kinds_of, ordered, structure_of, tensors_of
from .inputs import Inputs
from .joining import joined, one_after_the_other
from .joint import NOTHING, Joint, Writer, part_of
from .result import Attribution
from .run import Run
from .saved import SavedAttribution, save
from .structure import Arguments, distinct, read_arguments
from .targets import check_range

MOST = 8
"""The number of graphs for other shapes that are kept."""
_AS_TRACED = None, "as traced"
_WRITING = RLock()
_SHAPE = attrgetter("shape")


class TracedAttribution:
    """Forward pass, relevance and output of a model, as one graph; made by :meth:`Composite.trace`.

    It is called like a function, and runs without hooks, mode and registration, on the model's own weights, so changes
    by ``load_state_dict`` or an optimizer count. The numbers are those of the eager :func:`attribute`, bit for bit,
    until it is compiled.

    ``report`` is the coverage report of the example. ``notes`` say for which shapes the graph is valid, and how it was
    traced.

    Raises:
        TraceError: a call does not fit (another structure, dtype, device or shape of the inputs, another kind of
            target), or the model has changed (other weights, train mode, adapters or hooks).
    """

    def __init__(self, model: nn.Module, writer: Writer, given: Inputs, target: Any, dynamic: Collection[str]) -> None:
        self.model, self._writer, self._target, self._dynamic = model, writer, target, tuple(dynamic)
        goals = read_targets(target, given.count)
        self._main = self._write(given, goals)
        self._others: list[Joint] = []
        self._as_traced = goals
        self._kinds, self._structure = kinds_of(goals), structure_of((given.args, given.kwargs))
        self.report: CoverageReport = self._main.report
        self._options: dict[str, Any] | None = None

    def _write(self, given: Inputs, goals: Goals) -> Joint:
        if self._dynamic:
            try:
                return self._writer.write(given, goals, self._dynamic)
            except TraceError as error:
                self._why_fixed = str(error)
        return self._writer.write(given, goals)

    _why_fixed = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """For which shapes there are graphs, and how they were traced."""
        said = list(dict.fromkeys(note for joint in (self._main, *self._others) for note in joint.notes))
        if self._why_fixed:
            said.append(f"one graph for each shape, of which the last {MOST} are kept: {self._why_fixed}")
        elif self._dynamic:
            said.append(f"one graph for any size of {', '.join(self._dynamic)}")
        more = f"graphs of their own for {len(self._others)} shapes that it does not hold for"
        return (*said, more) if self._others else tuple(said)

    def __repr__(self) -> str:
        return f"<TracedAttribution of {type(self.model).__name__}: {'; '.join(self.notes) or 'for one shape'}>"

    # ---- calls -------------------------------------------------------------------------------------------------------

    def __call__(self, inputs: Any, *, target: Any = _AS_TRACED) -> Explained:
        """Explain inputs like those of the example.

        Args:
            inputs: as for :func:`attribute`.
            target: of the same kind as the example's; by default the very same.
        """
        _, given, _, found = self._found(inputs, target)
        found = [{**NOTHING, **each} for each in found]
        part = one_after_the_other(found, given, self._main.layer_dims) if len(found) > 1 else found[0]
        main = {name: r for name, r in part["relevance"].items() if name not in given.beside}
        relevance = next(iter(main.values())) if len(main) == 1 else main
        return Explained(relevance, part["output"], part["target"], part["latent"])

    def attribute(self, inputs: Any, *, target: Any = _AS_TRACED) -> Attribution:
        """Return the same as an :class:`Attribution`, on the CPU, with the checks of :func:`attribute`.

        Raises:
            NotFiniteError: the output or the relevance is not finite.
        """
        arguments, _, goals, found = self._found(inputs, target)
        given = self._with(arguments)
        run = Run(self.model, self._writer.composite, given, [])
        part = part_of(run, self._main, given, found)
        return Attribution(**joined([part], given, self.report, goals.names), ran="one graph")

    def _found(self, inputs: Any, target: Any) -> tuple[Arguments, Inputs, Goals, list[dict[str, Any]]]:
        """Return arguments, inputs with tensors of their shapes, targets, and what the graph finds for each."""
        arguments = distinct(ordered(read_arguments(self.model, inputs), self.model, list(self._main.given.kwargs)))
        found = structure_of(arguments)
        if found != self._structure:
            raise TraceError(
                f"the inputs are not like those of the example: {difference_of_calls(found, self._structure)}; "
                f"give such inputs, or trace it anew for these"
            )
        if changed := self._main.state.change():
            raise TraceError(f"the model is not what was traced: {changed}, or trace it anew")
        values = list(tensors_in(arguments))
        alike = all(map(eq, map(_SHAPE, values), self._main.shapes))
        given = self._main.given if alike else self._with(arguments)
        goals = self._goals_of(target, given.count)
        joint = self._fitting(given, goals, [*values, *indices_of(goals)])
        if changed := joint.value_changed():
            raise TraceError(
                f"the model is not what was traced: the graph depends on the values of {changed}, which are others "
                f"now; trace it anew"
            )
        if target is not _AS_TRACED:
            self._check_targets(goals, joint)
        return arguments, given, goals, joint.found([*values, *indices_of(goals)])

    def _with(self, arguments: Arguments) -> Inputs:
        """Return the inputs of the example with other tensors."""
        given = self._main.given
        return exchanged(given, Goals(()), tensors_of(given, Goals(())), list(tensors_in(arguments)))[0]

    def _goals_of(self, target: Any, count: int) -> Goals:
        """Return the targets of a call.

        Raises:
            TraceError: they are of another kind than those of the example.
        """
        if target is _AS_TRACED and count == self._main.given.count:
            return self._as_traced
        goals = read_targets(self._target if target is _AS_TRACED else target, count)
        if kinds_of(goals) != self._kinds:
            raise TraceError("the target is of another kind than the example's; trace it anew with this target=")
        return goals

    def _fitting(self, given: Inputs, goals: Goals, values: Sequence[Tensor]) -> Joint:
        """Return the graph for tensors of these shapes."""
        for joint in (self._main, *self._others):
            if joint.fits(values):
                return joint
        if not self._dynamic:
            shapes = ", ".join(f"{name}: {list(x.shape)}" for name, x in given.all.items())
            before = ", ".join(f"{name}: {list(x.shape)}" for name, x in self._main.given.all.items())
            raise TraceError(
                f"the graph is for inputs of one shape, {before}, but was given {shapes}; trace it with dynamic=True, "
                f"or for this shape too"
            )
        with _WRITING:  # one thread at a time puts the composite on the model
            known = next((joint for joint in self._others if joint.fits(values)), None)
            if known is not None:
                return known
            made = self._writer.write(given, goals)
            if self._options is not None:
                made.program.compile(*values, **self._options)
            self._others = [*self._others[-MOST + 1 :], made]
        return made

    def _check_targets(self, goals: Goals, joint: Joint) -> None:
        for goal in goals.each:
            for index in (goal.first, goal.second):
                if index is not None and joint.classes is not None:
                    check_range(index, joint.classes)

    # ---- copies ------------------------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedAttribution:
        new = memo[id(self)] = object.__new__(type(self))
        vars(new).update(copy.deepcopy(vars(self), memo))
        for joint in (new._main, *new._others):
            joint.state.follow(new.model, new._writer.own_code(new._as_traced))
        return new

    def __reduce__(self) -> Any:
        raise TypeError("a TracedAttribution cannot be pickled, as it is a part of its model; use save(path) and load")

    # ---- compilers and files -----------------------------------------------------------------------------------------

    def compile(self, **options: Any) -> TracedAttribution:
        """Compile the graph with torch's compiler (inductor) for the next calls; returns itself.

        Numbers may then differ by rounding.

        Args:
            options: of the compiler (``torch._inductor.list_options()``).
        """
        for joint in (self._main, *self._others):
            joint.program.compile(*tensors_of(joint.given, self._goals(joint)), **options)
        self._options = options
        return self

    def record(self) -> TracedAttribution:
        """Record the graph, compiled or not, as a CUDA graph, which one call launches; returns itself.

        Raises:
            TraceError: model and example are not on a GPU, the graph is for any shape, or it chooses by data.
        """
        self._main.program.record(*tensors_of(self._main.given, self._as_traced))
        return self

    def save(self, path: str | Path, *, compiled: bool = False, options: Mapping[str, Any] | None = None) -> None:
        """Write the graph as a ``.pt2`` file with its weights; only torch is needed to run it.

        As ``torch.export`` writes it, ``torch.export.load(path).module()(*tensors)`` returns a dictionary with
        "relevance" by the names of the inputs, "output", "target" and "latent"; compiled,
        ``torch._inductor.aoti_load_package(path)(*tensors)`` does. ``TracedAttribution.load(path)`` reads both, and
        takes inputs by names.

        Args:
            path: the file, whose name ends in ``.pt2``.
            compiled: whether to write machine code (AOTInductor), which a C++ compiler makes now, for processors and
                GPUs like those here.
            options: of the compiler.

        Raises:
            TraceError: `torch.export` or the compiler cannot write it.
        """
        save(self._main, self._as_traced, path, compiled=compiled, options=options or {})

    @staticmethod
    def load(path: str | Path) -> SavedAttribution:
        """Read what :meth:`save` wrote."""
        return SavedAttribution(path)

    def _goals(self, joint: Joint) -> Goals:
        return read_targets(self._target, joint.given.count)


# ---- how traces are made ---------------------------------------------------------------------------------------------


def _trace(
    composite: Composite,
    model: nn.Module,
    example: Any,
    *,
    target: Any = None,
    dims: Any = None,
    layers: Any = (),
    dynamic: bool | Collection[str] = False,
    differentiable: bool = False,
    registration: Registration | None = None,
) -> TracedAttribution:
    register = None if registration is None else _as_it_is(registration)
    with torch.inference_mode(False), torch.enable_grad():
        given, _, watched = read(model, example, target, dims, layers)
        writer = Writer(model, composite, watched, register=register, differentiable=differentiable)
        return TracedAttribution(model, writer, given, target, of_any_size(given, dynamic))


def _as_it_is(registration: Registration) -> Callable[[nn.Module], AbstractContextManager[Registration]]:
    """Use an existing registration; nothing is counted."""

    @contextmanager
    def register(model: nn.Module) -> Iterator[Registration]:
        if model is not registration.model or not registration.active:
            raise TraceError(
                "a registration is traced while it is active, and without target functions; use composite.trace()"
            )
        with registration.session.quietly():
            yield registration

    return register


trace_with.append(_trace)
