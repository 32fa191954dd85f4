"""Graphs kept for similar calls of :func:`attribute`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..autograd.trees import tensors_in
from ..errors import TraceError
from ..tracing import ByModel, Kept, ModelState
from .goals import Goals
from .graph_inputs import kinds_of, structure_of, tensors_of
from .inputs import Inputs
from .joint import STRANGERS, Joint, Writer, part_of
from .run import Run, with_bar

_SEEN = "made the second time that such inputs are explained"
_kept = ByModel[list[Any]]()
"""For each model and kind of call: a graph, or why there is none."""


class Graphs:
    """The graphs for the calls of one attribution.

    Args:
        run: the attribution.
        composite: the composite as it was asked for, by name or itself.
        always: whether a graph is made for the first call of its kind too, and must be.
        known: where graphs are kept; by default with the model.
    """

    def __init__(self, run: Run, composite: Any, *, always: bool, known: Kept[list[Any]] | None = None) -> None:
        self._run, self._always = run, always
        self._known: Kept[list[Any]] = _kept.of(Graphs, run.model) if known is None else known
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
        if not known and not self._always:
            known.append(_SEEN)
            return _SEEN
        if not known or known[-1] is _SEEN or (isinstance(known[-1], Joint) and known[-1].value_changed()):
            try:
                known[:] = [self._written(batch, goals)]
            except TraceError as error:
                known[:] = [error]
        graph: Joint | TraceError = known[-1]
        return graph if isinstance(graph, Joint) else self._without(graph)

    def _written(self, batch: Inputs, goals: Goals) -> Joint:
        joint = Writer(self._run.model, self._run.composite, self._run.layers).write(batch, goals)
        if STRANGERS in joint.notes:
            raise TraceError(
                "weights are used that the model does not hold as its own (in a list, in a target function), and "
                "nobody would see others take their place; make their modules its submodules, or use composite.trace()"
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
