"""Forward pass, relevance and output of a model as one graph, for inputs like those of an example."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..composite import Composite
from ..coverage.report import CoverageReport
from ..errors import CompositeError, TraceError
from ..rules.linear_layers.branches import without_choices
from ..runtime.registration import Registration
from ..torch_internals import buffers_of
from ..torch_internals.ambient import drawn
from ..tracing import ModelState, Program
from .any_size import names_of, of_other_sizes
from .axes import Dims
from .goals import Goals
from .graph_inputs import exchanged, indices_of, structure_of, tensors_of
from .inputs import Inputs
from .joining import one_after_the_other
from .latent import Layer
from .replay import Lookups, NotingTaps, ReplayTaps
from .run import Run, statistics_kept

Register = Callable[[nn.Module], AbstractContextManager[Registration]]


STRANGERS = "weights that the model does not hold as its own are those of the example, also if others take their place"


RANDOM = "the model draws random numbers or changes its buffers; call model.eval() first"
MOVING = "in each call the model changes "


@dataclass(frozen=True)
class Joint:
    """The graph of one model and one composite, for inputs of one structure.

    ``state`` is that of the model when it was traced; ``notes`` say for which shapes the graph is valid, and how it was
    traced. It holds no reference to the model but for its tensors.
    """

    program: Program
    state: ModelState
    names: tuple[tuple[str | None, ...], ...]
    """For each tensor the names of the dimensions that may be of any size."""
    shapes: tuple[torch.Size, ...]
    given: Inputs
    report: CoverageReport
    layer_dims: dict[str, Dims]
    classes: int | None
    notes: tuple[str, ...]
    differentiable: bool

    def found(self, tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Run the graph, and return what was found for each target."""
        recorded = self.differentiable and torch.is_grad_enabled()
        result: list[dict[str, Any]] = (self.program.differentiable if recorded else self.program)(*tensors)
        return result

    def value_changed(self) -> str:
        """Return the weight whose values the trace depended on and that has changed since; empty if none has."""
        changed = self.program.changed()
        return "" if changed is None else self.state.where(changed)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether the graph is valid for tensors of these sizes."""
        sizes: dict[str, int] = {}
        for x, shape, names in zip(tensors, self.shapes, self.names, strict=True):
            if x.shape == shape:
                pairs = [(name, size) for name, size in zip(names, shape, strict=True) if name is not None]
            elif x.dim() != len(shape) or any(
                name is None and size != before for name, size, before in zip(names, x.shape, shape, strict=True)
            ):
                return False
            else:
                pairs = [(name, size) for name, size in zip(names, x.shape, strict=True) if name is not None]
            for name, size in pairs:
                if sizes.setdefault(name, size) != size:
                    return False
        return self.program.holds(sizes) if sizes else True


class Writer:
    """Traces a model's attribution as a graph.

    Args:
        model: the model.
        composite: the composite.
        layers: the layers whose relevance is wanted.
        register: puts the composite on the model; by default a new registration does.
        differentiable: whether the outputs of the graph will be differentiated.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        layers: list[Layer],
        *,
        register: Register | None = None,
        differentiable: bool = False,
    ) -> None:
        self.model, self.composite, self.layers = model, composite, layers
        self._register, self._differentiable = register, differentiable

    def write(self, given: Inputs, goals: Goals, dynamic: Collection[str] = ()) -> Joint:
        """Return the graph for an example.

        Args:
            given: the example.
            goals: its targets.
            dynamic: the dimensions that may be of any size.

        Raises:
            TraceError: the model cannot be written down as one graph.
        """
        structure_of((given.args, given.kwargs))
        tensors = tensors_of(given, goals)
        names = names_of(given, indices_of(goals), tensors, dynamic)
        taps = list[NotingTaps]()

        def noting(registration: Registration, floats: bool) -> NotingTaps:
            taps.append(NotingTaps(registration, floats))
            return taps[-1]

        run = self._run(given)
        run.make_taps = noting
        (part,) = run.batches(goals, None, progress=False, ledger=False)
        lookups = taps[-1].lookups
        if dynamic and not lookups.in_order:
            raise TraceError(
                "integers are looked up in an order or with constants that depend on their shape, so there is no "
                "graph for any shape; trace it for one shape"
            )
        state = ModelState(self.model, self.own_code(goals))
        program, how = self._program(given, goals, tensors, names, lookups, state)
        if program.is_random or program.changes_weights:
            raise TraceError(RANDOM)
        if taps[-1].met_strangers:
            how += (STRANGERS,)
        how += tuple(f"{MOVING}{said}, and the graph has the example's" for said in state.moving)
        shapes = tuple(x.shape for x in tensors)
        return Joint(
            program, state, names, shapes, given, run.report, part["dims"], run.classes, how, self._differentiable
        )

    def own_code(self, goals: Goals) -> Iterator[Any]:
        """Yield the user's functions beside the model, on whose globals and closures a graph depends."""
        yield from (goal.function for goal in goals.each if goal.function is not None)
        for entry in self.composite.assignments:
            yield from entry.own_code

    def _run(self, given: Inputs) -> Run:
        run = Run(self.model, self.composite, given, self.layers)
        run.register = self._register or run.register
        return run

    def _program(
        self, given: Inputs, goals: Goals, tensors: list[Tensor], names: Any, lookups: Lookups, state: ModelState
    ) -> tuple[Program, tuple[str, ...]]:
        """Return the graph, and a note on how it was traced.

        Models that need values of tensors may do without them under a compiler.
        """
        ways = [(False, ()), (True, ("written down as compilers see the model, which asks for values otherwise",))]
        errors = []
        for compiling, notes in ways:
            try:
                return self._written(given, goals, tensors, names, lookups, state, compiling=compiling), notes
            except CompositeError as error:
                raise TraceError(_why(self.model, error)) from error
            except Exception as error:  # whatever the model does with tensors that have no values
                errors.append(error)
        raise TraceError(_why(self.model, errors[0])) from errors[0]

    def _written(
        self,
        given: Inputs,
        goals: Goals,
        tensors: list[Tensor],
        names: Any,
        lookups: Lookups,
        state: ModelState,
        *,
        compiling: bool,
    ) -> Program:
        run = self._run(given)
        run.make_taps = lambda registration, floats: ReplayTaps(registration, lookups)
        with ExitStack() as stack:
            stack.enter_context(statistics_kept(self.model))
            stack.enter_context(attributes_kept(self.model))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(run.at_work(goals))
            if self._differentiable:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                stack.enter_context(without_choices())

            def joint(*values: Tensor) -> list[dict[str, Any]]:
                inputs, wanted = exchanged(given, goals, tensors, values)
                before = drawn()
                try:
                    found = [_without_nothing(each) for each in run.one(inputs, wanted)]
                except Exception:
                    run.registration.session.abandon()
                    raise
                if drawn() != before:
                    raise TraceError(RANDOM)
                state.settle()
                return found

            sizes, differentiable = of_other_sizes(tensors, names), self._differentiable
            return Program(joint, sizes, names, compiling=compiling, differentiable=differentiable)


def part_of(run: Run, joint: Joint, given: Inputs, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a graph has found for each target, checked and on the CPU, as a part of an attribution.

    Args:
        run: the attribution.
        joint: the graph.
        given: the inputs that it was run on.
        found: what it gave.

    Raises:
        NotFiniteError: the output or the relevance is not finite.
    """
    moved = [{**NOTHING, **_on_cpu(each)} for each in found]
    for each in moved:
        run.check_finite(given, {"output": each["output"], **each["relevance"]})
    return {**one_after_the_other(moved, given, joint.layer_dims), "dims": joint.layer_dims}


NOTHING: dict[str, Any] = {"target": None, "latent": {}}


def _on_cpu(found: Any) -> Any:
    return {name: _on_cpu(each) for name, each in found.items()} if isinstance(found, dict) else found.cpu()


def _without_nothing(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}


def _why(model: nn.Module, error: Exception) -> str:
    said = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(model).__name__} cannot be written down as one graph: {said[0][:300]}"


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the attributes of a model, in which tracing may leave tensors without values."""
    kept = [(vars(module), dict(vars(module))) for module in model.modules()]
    tables = [(table, dict(table)) for table in buffers_of(model)]
    try:
        yield
    finally:
        for now, before in (*kept, *tables):
            if any(now.get(name, model) is not value for name, value in before.items()) or len(now) != len(before):
                now.clear()
                now.update(before)
