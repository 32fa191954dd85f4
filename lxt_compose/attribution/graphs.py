"""Graphs kept for similar calls of :func:`attribute`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..autograd.trees import tensors_in
from ..errors import TraceError
from ..tracing import ByModel, Kept, ModelState
from .goals import Goals
from .graph_inputs import functions_of, kinds_of, structure_of, tensors_of
from .inputs import Inputs
from .joint import MOVING, STRANGERS, Joint, Writer, part_of
from .run import Run, with_bar

_SEEN = "made the second time that such inputs are explained"
_MOST = 4
"""The most graphs for calls that differ only in Python values that the model reads."""
_kept = ByModel[list["_Entry"]]()
"""For each model and kind of call: its graphs, or why there is none."""


@dataclass(frozen=True)
class _Entry:
    """A graph for a kind of call, or why there is none, and weak references to the functions that it was made with."""

    found: Joint | TraceError | str
    functions: list[Callable[[], Any]]

    def lives(self) -> bool:
        """Return whether the functions are still there; another may have the identity of one that is not."""
        return all(function() is not None for function in self.functions)

    def fits(self) -> bool:
        """Return whether it serves a call now."""
        if isinstance(self.found, Joint):
            return not self.found.value_changed() and not self.found.state.change()
        return isinstance(self.found, TraceError)

    def why(self) -> str:
        """Return what has changed."""
        return self.found.state.change() if isinstance(self.found, Joint) else ""


class Graphs:
    """The graphs for the calls of one attribution.

    Args:
        run: the attribution.
        composite: the composite as it was asked for, by name or itself.
        always: whether a graph is made for the first call of its kind too, and must be.
        known: where graphs are kept; by default with the model.
    """

    def __init__(self, run: Run, composite: Any, *, always: bool, known: Kept[list[_Entry]] | None = None) -> None:
        self._run, self._always = run, always
        self._known: Kept[list[_Entry]] = _kept.of(Graphs, run.model) if known is None else known
        self._common = composite, ModelState.key(run.model), tuple((x.name, x.of_input) for x in run.layers)

    def batches(self, goals: Goals, size: int | None, *, progress: bool) -> list[dict[str, Any]]:
        """Return what was found in each batch, as :meth:`Run.batches`."""
        run, parts, eagerly = self._run, list[dict[str, Any]](), list[str]()
        cut = [(part, batch, self._graph(batch, goals.part(part))) for part, batch in run.given.batches(size)]
        if not any(isinstance(graph, Joint) for *_, graph in cut):
            run.ran = f"eager: {cut[0][2]}"
            return run.batches(goals, size, progress=progress, ledger=False)
        for part, batch, graph in with_bar(cut, run.given.count) if progress else cut:
            if isinstance(graph, Joint):
                parts.append(part_of(run, graph, batch, graph.found(tensors_of(batch, goals.part(part)))))
                run.report = graph.report
            else:
                alone = Run(run.model, run.composite, batch, run.layers)
                parts += alone.batches(goals.part(part), None, progress=False, ledger=False)
                eagerly.append(str(graph))
        run.ran = "one graph" + (f"; {len(eagerly)} of {len(cut)} batches eager: {eagerly[0]}" if eagerly else "")
        return parts

    def _graph(self, batch: Inputs, goals: Goals) -> Joint | str:
        """Return the graph for a batch, or the reason why there is none.

        Raises:
            TraceError: there must be one.
        """
        try:
            key = (*self._common, structure_of((batch.args, batch.kwargs)), _shapes(batch), kinds_of(goals))
        except TraceError as error:
            return self._without(error)
        known = self._known.get(key, list)
        known[:] = [each for each in known if each.lives()]
        if not known and not self._always:
            known.append(_Entry(_SEEN, []))
            return _SEEN
        entry = next((each for each in known if each.fits()), None)
        if entry is None:
            known[:] = [each for each in known if isinstance(each.found, Joint) and not each.found.value_changed()]
            if len(known) >= _MOST and not self._always:
                return f"since the last calls there was another change each time: {known[-1].why()}"
            entry = _Entry(self._written(batch, goals), functions_of(goals))
            known[:] = [*known[-_MOST + 1 :], entry]
        return self._without(entry.found) if isinstance(entry.found, TraceError) else entry.found

    def _written(self, batch: Inputs, goals: Goals) -> Joint | TraceError:
        try:
            joint = Writer(self._run.model, self._run.composite, self._run.layers).write(batch, goals)
        except TraceError as error:
            return error
        if STRANGERS in joint.notes:
            return TraceError(
                "weights are used that the model does not hold as its own (in a list, in a target function), and "
                "nobody would see others take their place; make their modules its submodules, or use composite.trace()"
            )
        if joint.state.moving:
            return TraceError(
                f"{MOVING}{joint.state.moving[0]}, which the graph would have as it is now; take it out of forward(), "
                f"or use composite.trace()"
            )
        return joint

    def _without(self, error: TraceError) -> str:
        if self._always:
            raise error
        return str(error)


def _shapes(batch: Inputs) -> tuple[Any, ...]:
    tensors: list[Tensor] = list(tensors_in((batch.args, batch.kwargs)))
    return tuple(x.shape for x in tensors), tuple(batch.dims.items()), tuple(batch.all)


def batches(
    run: Run, graphs: Graphs | None, goals: Goals, size: int | None, *, progress: bool, ledger: bool
) -> list[dict[str, Any]]:
    """Return what was found in each batch: by a graph if there is one and no ledger is wanted, else eagerly."""
    if graphs is not None and not ledger:
        return graphs.batches(goals, size, progress=progress)
    if graphs is not None:
        run.ran = "eager: a ledger is read off the graph of a registered model"
    return run.batches(goals, size, progress=progress, ledger=ledger)
