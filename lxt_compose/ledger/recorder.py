"""The recorder of a ledger reads the relevance that enters and leaves each operation off the autograd graph.

After an operation has run, the autograd nodes between its outputs and its carriers are its own. A hook after each of
them reads all the relevance that arrives at its outputs, and what it, and no other consumer, sends to the carriers. No
tensor is wrapped and no node is added, so values and relevance are the same as without.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from ..autograd.functions import AllStopped
from ..autograd.nodes import (
    CHECKPOINT,
    CUSTOM,
    EXACT,
    OTHER,
    function_of_node,
    kind_of_node,
    name_of_node,
    past_links,
)
from ..autograd.saved_values import Kept, keep
from ..autograd.trees import tensors_in
from ..coverage.rows import Status
from ..rules import GRADIENT, OpCall
from ..rules.absorption import CONSTANT, RULE, UNCOVERED
from ..torch_internals import in_backward, modes_off, next_node_number
from ..torch_internals.backward_hooks import behind_hook
from .accounts import Graph, Key, Run
from .closing import close
from .edge import Edge
from .graph_check import Interval, check_graph
from .layouts import Layout, in_front, layout_like, layout_of_whole
from .ledger import Ledger
from .meters import Meter, Whole, inside, view_of
from .operation import Operation, changed, changed_view, refuse_spread
from .samples import layouts_after
from .sinks import call_of, rest_of, sinks_of
from .stopped import Stopped


class Recorder:
    """An observer that records a ledger; see :class:`~lxt_compose.ledger.Ledger` for its content."""

    def __init__(self, formulation: str, alone: Collection[str] = ()) -> None:
        self.formulation, self._alone = formulation, alone
        self.runs: list[Run] = []
        self._stopped = Stopped()
        self._here = threading.local()

    @property
    def ledger(self) -> Ledger:
        """The ledger, which fills while relevance flows."""
        return Ledger(lambda: close(list(self.runs), self._alone))

    # ---- what the function mode and the hooks call -------------------------------------------------------------------

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See :class:`~lxt_compose.runtime.observer.Observer`."""
        with modes_off():
            tensors = list(tensors_in((args, kwargs)))
            carriers = [tensor for tensor in tensors if tensor.requires_grad]
            outer = None
            if in_backward():  # recomputed by an activation checkpoint
                outer = next((run for run in reversed(self.runs) if run.outer is None), None)
            batch = next((len(tensor) for tensor in (*carriers, *tensors) if tensor.dim()), 1)
            before: Run | None = getattr(self._here, "run", None)
            if before is not None:
                before.graph = None  # left behind by an error
            self._here.run = run = Run(outer.samples if outer else max(1, batch), outer)
            self._here.open = []
            self.runs.append(run)
            assert run.graph is not None
            for x in carriers:
                key = self._key(x)
                if key not in run.graph.edges:
                    self._enter_from_outside(run, run.graph, x, key)
                    run.graph.stops.add(key[0])

    def finish(self, output: Any) -> None:
        """See :class:`~lxt_compose.runtime.observer.Observer`."""
        run = self._run()
        with modes_off():
            roots = {self._key(z): z for z in tensors_in(output) if z.requires_grad}
            run.roots = [f for key, z in roots.items() if (f := self._edge(run, z, key, "").flow) not in run.inputs]
            graph, run.graph = run.graph, None
            if graph is None or run.outer is not None:
                return
            for path, kind, keys in graph.modules:
                run.modules.append((path, kind, [graph.edges[key].flow for key in keys if key in graph.edges]))
            run.check = check_graph(roots.values(), graph.stops, graph.intervals)

    def turn(self) -> None:
        """Begin another backward pass of the forward pass that has ended, with relevance of its own."""
        next(run for run in reversed(self.runs) if run.outer is None).journal.turn()

    def begin(self, call: OpCall) -> Operation:
        """See :class:`~lxt_compose.runtime.observer.Observer`."""
        run = self._run()
        with modes_off():
            known = [(x, self._edge(run, x, self._key(x), call.path)) for x in call.carriers]
            first = next_node_number()
        sent = run.journal.open()
        function = call.function if call.module is None else call.module
        operation = Operation(
            call.path, call.name, sent, call.op, function, call.args, call.kwargs, known, first_node=first
        )
        self._open().append(operation)
        return operation

    def end(self, seen: Operation, output: Any) -> None:
        """See :class:`~lxt_compose.runtime.observer.Observer`."""
        run, running = self._run(), self._open()
        with modes_off():
            stop = next_node_number()
            while running and running.pop() is not seen:
                pass  # operations inside it that failed, or that are no operations of their own
            if running:
                running[-1].parts += 1
            if run.graph is not None:
                refuse_spread(seen, (*(x for x, _ in seen.carriers), *tensors_in(output)))
                if not seen.parts:
                    run.graph.intervals.append(Interval(seen.first_node, stop, seen.path, seen.name, seen.status))
                self._book(run, run.graph, seen, output)
            self._stopped.see(seen, tensors_in(output))
        seen.forget()

    def constant(self, given: Iterable[Tensor], made: Iterable[Tensor]) -> None:
        """See :class:`~lxt_compose.runtime.observer.Observer`."""
        with modes_off():
            self._stopped.follow(given, made)

    def module(self, path: str, kind: str, output: Any) -> None:
        """See :class:`~lxt_compose.runtime.observer.Observer`."""
        run = self._run()
        with modes_off():
            keys = dict.fromkeys(self._key(z) for z in tensors_in(output) if z.requires_grad)
        if run.graph is not None:  # the operation that made these tensors may be found later only
            run.graph.modules.append((path, kind, list(keys)))

    # ---- the autograd graph ------------------------------------------------------------------------------------------

    def _run(self) -> Run:
        run: Run = self._here.run
        return run

    def _open(self) -> list[Operation]:
        operations: list[Operation] = self._here.open
        return operations

    @staticmethod
    def _key(x: Tensor) -> Key:
        """Return the edge of x as of now: a change in place gives it another."""
        node = x.grad_fn
        return torch.autograd.graph.get_gradient_edge(x)[:2] if node is None else (node, x.output_nr)

    def _book(self, run: Run, graph: Graph, seen: Operation, output: Any) -> None:
        """Claim the nodes of an operation that has run, and put hooks on its borders."""
        made: dict[Key, Tensor] = {}
        view = changed_view(seen)
        for z in (*tensors_in(output), *changed(seen)):
            of = z._base if z is view and z._base is not None else z  # a changed view is a new view of what was made
            if of.requires_grad and (key := self._key(of)) not in graph.edges and key[0] not in graph.meters:
                made[key] = z
        if not made:
            return
        call = call_of(seen, self.formulation)
        seen.rest = self._stopped.kind(rest_of(seen, call), seen)
        known = [(x, edge.layout) for x, edge in seen.carriers]
        what = (seen.op, seen.function, seen.args, seen.kwargs)
        layouts = layouts_after(*what, known, list(made.values()), run.samples)
        for node, _ in made:
            self._claim(run, graph, seen, node)
        for (key, z), layout in zip(made.items(), layouts, strict=True):
            self._produced(run, graph, seen, key, z, layout, call, past=z is view)
        run.operations.append(seen)

    def _edge(self, run: Run, x: Tensor, key: Key, path: str) -> Edge:
        """Return the edge of a carrier; if no known operation made the carrier, look up in the graph what did."""
        graph = run.graph
        if graph is None:  # the forward pass is over
            return Edge(None, None, run.journal.flow(), run.samples)
        edge = graph.edges.get(key)
        if edge is not None:
            return edge
        if x.grad_fn is None:
            return self._enter_from_outside(run, graph, x, key)
        way = behind_hook(key)  # which has the same values, but the user may send on another slot
        behind = None if way is None else self._edge(run, x, way, path)
        if key[0] in graph.meters:  # this is another output of a known operation
            operation = graph.meters[key[0]].operation
        else:
            operation = Operation(path, "", run.journal.open())
            self._name(operation, self._claim(run, graph, operation, key[0]))
            run.operations.append(operation)
        known = graph.layouts.get(id(x))
        layout = known[1] if known is not None and known[0]() is x else None
        layout = layout or (layout_like(x, operation.sources) if behind is None else behind.layout)
        return self._produced(run, graph, operation, key, x, layout)

    def _name(self, operation: Operation, nodes: list[Any]) -> None:
        """Return the name of nodes that were found in the graph."""
        kinds = [kind_of_node(node) for node in nodes]
        worst = next(kind for kind in (CUSTOM, OTHER, CHECKPOINT, EXACT) if kind in kinds)
        named = [name_of_node(node) for node, kind in zip(nodes, kinds, strict=True) if kind == worst]
        operation.name = ", ".join(dict.fromkeys(reversed(named)))
        operation.status = {CUSTOM: Status.UNCOVERED, EXACT: Status.EXACT}.get(worst)
        operation.rest = CONSTANT if worst == EXACT else UNCOVERED
        if any(function_of_node(node) is AllStopped for node in nodes):
            operation.rest = RULE
        operation.passes_on = worst == CHECKPOINT

    def _claim(self, run: Run, graph: Graph, operation: Operation, node: Any) -> list[Any]:
        """Claim all nodes from this one to known ones for the operation, and read there what leaves it."""
        pending, claimed = [node], []
        while pending:
            node = pending.pop()
            if node in graph.meters:
                continue
            meter = graph.meters[node] = Meter(run.journal, operation)
            claimed.append(node)
            for place, way in enumerate(map(past_links, node.next_functions)):
                source = way[0]
                if source is None:
                    continue
                meter.ways.append(place)
                edge, other = graph.edges.get(way), graph.meters.get(source)
                if edge is None and other is None and hasattr(source, "variable"):
                    edge = self._enter_from_outside(run, graph, source.variable, way)
                if edge is not None:
                    meter.borders.append((place, edge))
                    operation.sources.append(edge.layout)
                elif other is None:
                    pending.append(source)
                elif way in graph.wholes:
                    meter.past_views.append((place, graph.wholes[way]))
                    operation.sources.append(graph.wholes[way].edge.layout)
                elif other.operation is not operation:
                    operation.unreadable = True
            meter.hang(node)
        return claimed

    def _enter_from_outside(self, run: Run, graph: Graph, x: Tensor, key: Key) -> Edge:
        """Return the edge of an input of the model, or of another leaf that carries relevance."""
        batched = x.dim() > 0 and x.shape[0] == run.samples
        layout = in_front(run.samples) if batched else None
        edge = graph.edges[key] = Edge(self._value(x), layout, run.journal.flow(), run.samples)
        if run.outer is None:
            run.inputs.append(edge.flow)
        return edge

    def _value(self, x: Tensor) -> Kept | None:
        return keep(x) if self.formulation == GRADIENT else None

    def _produced(
        self,
        run: Run,
        graph: Graph,
        operation: Operation,
        key: Key,
        z: Tensor,
        layout: Layout | None,
        call: OpCall | None = None,
        *,
        past: bool = False,
    ) -> Edge:
        """Return the edge of a tensor that an operation made, where relevance is read; with `past`, at its base."""
        flow, whole, view = run.journal.flow(), z._base, view_of(z)
        edge = own = Edge(None if past else self._value(z), layout, flow, run.samples)
        if past and whole is not None:
            edge = Edge(self._value(whole), layout_of_whole(z, layout, whole), flow, run.samples)
        graph.edges[key] = edge
        graph.layouts[id(whole if past else z)] = ref(whole if past and whole is not None else z), edge.layout
        operation.made.append(flow)
        sinks = []
        for known, reader in sinks_of(operation, call, z, own) if call is not None else ():
            kind = self._stopped.kind(known, operation)
            if kind not in operation.known:
                operation.known[kind] = run.journal.open()
            sinks.append((operation.known[kind], inside(view if past else None, reader)))
        graph.meters[key[0]].outputs.append((key[1], edge, sinks))
        if view is not None and not past and whole is not None and whole.requires_grad and whole.numel() == z.numel():
            graph.wholes.setdefault(self._key(whole), Whole(edge, sinks, view))
        return edge
