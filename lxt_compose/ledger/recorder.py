"""Keeping the books while relevance flows: what enters and what leaves each operation, read off the autograd graph.

After an operation has run, the autograd nodes between its outputs and its carriers are its own. A hook before the node
of an output reads all the relevance that arrives there; a hook after each node that borders on a carrier reads what
this operation, and no other consumer, sends there. No tensor is wrapped and no node is added, so values and relevance
are the same as without.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..coverage import Status
from ..numerics import tensors_in
from ..ops import Op
from ..rules import GRADIENT
from ..saving import Kept, keep
from .accounts import Edge, Flow, Graph, Key, Operation, Postings, Run
from .closing import close
from .data import Ledger
from .graph_check import CHECKPOINT, CUSTOM, EXACT, OTHER, Interval, check_graph, kind_of_node, name_of_node
from .samples import Layout, in_front, layout_like, layouts_after
from .sinks import CONSTANT, UNCOVERED, rest_of, sinks_of

_NO_BACKWARD = -1


class Recorder:
    """An observer that keeps the books; see :class:`~lxt_compose.ledger.Ledger` for what they tell."""

    def __init__(self, formulation: str) -> None:
        self.formulation = formulation
        self.runs: list[Run] = []
        self._here = threading.local()

    @property
    def ledger(self) -> Ledger:
        """What the books tell; it goes on to fill as relevance flows."""
        return Ledger(lambda: close(list(self.runs)))

    # ---- what the function mode and the hooks call -------------------------------------------------------------------

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See :class:`~lxt_compose.observing.Observer`."""
        with torch._C.DisableTorchFunction():
            tensors = list(tensors_in((args, kwargs)))
            carriers = [tensor for tensor in tensors if tensor.requires_grad]
            outer = None
            if torch._C._current_graph_task_id() != _NO_BACKWARD:  # recomputed by an activation checkpoint
                outer = next((run for run in reversed(self.runs) if run.outer is None), None)
            batch = next((len(tensor) for tensor in (*carriers, *tensors) if tensor.dim()), 1)
            before: Run | None = getattr(self._here, "run", None)
            if before is not None:
                before.graph = None  # it was left there by an error
            self._here.run = run = Run(outer.samples if outer else max(1, batch), outer)
            self._here.open = []
            self.runs.append(run)
            assert run.graph is not None
            for x in carriers:
                key = self._key(x)
                if key not in run.graph.edges:
                    self._enter_from_outside(x, key)
                    run.graph.stops.add(key[0])

    def finish(self, output: Any) -> None:
        """See :class:`~lxt_compose.observing.Observer`."""
        run = self._run()
        with torch._C.DisableTorchFunction():
            roots = {self._key(z): z for z in tensors_in(output) if z.requires_grad}
            run.roots = [self._edge(z, "").flow for z in roots.values()]
            graph, run.graph = run.graph, None
            if graph is None or run.outer is not None:
                return
            for path, kind, keys in graph.modules:
                run.modules.append((path, kind, [graph.edges[key].flow for key in keys if key in graph.edges]))
            run.check = check_graph(roots.values(), graph.stops, graph.intervals)

    def begin(
        self,
        path: str,
        name: str,
        op: Op | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        carriers: list[Tensor],
    ) -> Operation:
        """See :class:`~lxt_compose.observing.Observer`."""
        with torch._C.DisableTorchFunction():
            known = [(x, self._key(x), self._edge(x, path)) for x in carriers]
            first = torch._C._autograd._get_sequence_nr()
        operation = Operation(path, name, op, function, args, kwargs, known, first_node=first)
        self._open().append(operation)
        return operation

    def end(self, seen: Operation, output: Any) -> None:
        """See :class:`~lxt_compose.observing.Observer`."""
        run, running = self._run(), self._open()
        with torch._C.DisableTorchFunction():
            stop = torch._C._autograd._get_sequence_nr()
            while running and running.pop() is not seen:
                pass  # those that began inside it and failed, or turned out to be nothing of their own
            if running:
                running[-1].parts += 1
            if run.graph is not None:
                if not seen.parts:
                    run.graph.intervals.append(Interval(seen.first_node, stop, seen.path, seen.name, seen.status))
                self._book(run, run.graph, seen, output)
        seen.forget()

    def module(self, path: str, kind: str, output: Any) -> None:
        """See :class:`~lxt_compose.observing.Observer`."""
        run = self._run()
        with torch._C.DisableTorchFunction():
            keys = dict.fromkeys(self._key(z) for z in tensors_in(output) if z.requires_grad)
        if run.graph is not None:  # who made these tensors may turn out later only
            run.graph.modules.append((path, kind, list(keys)))

    # ---- the autograd graph ------------------------------------------------------------------------------------------

    def _run(self) -> Run:
        run: Run = self._here.run
        return run

    def _open(self) -> list[Operation]:
        operations: list[Operation] = self._here.open
        return operations

    def _key(self, x: Tensor) -> Key:
        """The edge that x stands for now. A change in place gives it another."""
        edge = torch.autograd.graph.get_gradient_edge(x)
        graph = self._run().graph
        if graph is not None:
            graph.alive[id(edge.node)] = edge.node
        return id(edge.node), edge.output_nr

    def _book(self, run: Run, graph: Graph, seen: Operation, output: Any) -> None:
        """Take the nodes of an operation that has run, and hang hooks on its borders."""
        seen.rest = rest_of(seen)
        candidates = (*tensors_in(output), *tensors_in((seen.args, seen.kwargs)))
        made = {self._key(z): z for z in candidates if z.requires_grad}
        fresh = {key: z for key, z in made.items() if key not in graph.edges and key[0] not in graph.owners}
        known = [(x, edge.layout) for x, _, edge in seen.carriers]
        call = (seen.op, seen.function, seen.args, seen.kwargs)
        layouts = layouts_after(*call, known, list(fresh.values()), run.samples)
        for z in fresh.values():
            self._claim(graph, seen, z.grad_fn)
        for (key, z), layout in zip(fresh.items(), layouts, strict=True):
            self._produced(graph, seen, key, z, layout)
        if fresh:
            run.operations.append(seen)

    def _edge(self, x: Tensor, path: str) -> Edge:
        """What is known of a carrier; if nobody made it that we have seen, what did is found in the graph."""
        run, key = self._run(), self._key(x)
        graph = run.graph
        if graph is None:  # the forward pass is over
            return Edge(None, None, Flow(run.samples))
        if key in graph.edges:
            return graph.edges[key]
        if x.grad_fn is None:
            return self._enter_from_outside(x, key)
        operation = graph.owners.get(key[0])  # if there is one, this is another output of it
        if operation is None:
            operation = Operation(path, "")
            self._name(operation, self._claim(graph, operation, x.grad_fn))
            run.operations.append(operation)
        layout = graph.layouts.get(x) or layout_like(x, operation.sources)
        return self._produced(graph, operation, key, x, layout)

    def _name(self, operation: Operation, nodes: list[Any]) -> None:
        """Say of nodes that were found in the graph what they are."""
        kinds = [kind_of_node(node) for node in nodes]
        worst = next(kind for kind in (CUSTOM, OTHER, CHECKPOINT, EXACT) if kind in kinds)
        named = [name_of_node(node) for node, kind in zip(nodes, kinds, strict=True) if kind == worst]
        operation.name = ", ".join(dict.fromkeys(reversed(named)))
        operation.status = {CUSTOM: Status.UNCOVERED, EXACT: Status.EXACT}.get(worst)
        operation.rest = CONSTANT if worst == EXACT else UNCOVERED
        operation.passes_on = worst == CHECKPOINT

    def _claim(self, graph: Graph, operation: Operation, node: Any) -> list[Any]:
        """All nodes from this one down to what is known belong to the operation; read what leaves it there."""
        pending, claimed = [node], []
        while pending:
            node = pending.pop()
            if id(node) in graph.owners:
                continue
            graph.owners[id(node)], graph.alive[id(node)] = operation, node
            claimed.append(node)
            borders, ways = [], []
            for place, (source, number) in enumerate(node.next_functions):
                if source is None:
                    continue
                ways.append(place)
                graph.alive[id(source)] = source
                edge = graph.edges.get((id(source), number))
                owner = graph.owners.get(id(source))
                if edge is None and owner is None and hasattr(source, "variable"):
                    edge = self._enter_from_outside(source.variable, (id(source), number))
                if edge is not None:
                    borders.append((place, edge))
                    operation.sources.append(edge.layout)
                elif owner is None:
                    pending.append(source)
                elif owner is not operation:
                    operation.unreadable = True
            if ways:
                node.register_hook(_leaving(operation, borders, ways))
        return claimed

    def _enter_from_outside(self, x: Tensor, key: Key) -> Edge:
        """An input of the model, or another leaf that carries relevance."""
        run = self._run()
        assert run.graph is not None
        batched = x.dim() > 0 and x.shape[0] == run.samples
        edge = Edge(self._value(x), in_front(run.samples) if batched else None, Flow(run.samples))
        run.graph.edges[key] = edge
        if run.outer is None:
            run.inputs.append(edge.flow)
        return edge

    def _value(self, x: Tensor) -> Kept | None:
        return keep(x) if self.formulation == GRADIENT else None

    def _produced(self, graph: Graph, operation: Operation, key: Key, z: Tensor, layout: Layout | None) -> Edge:
        """A tensor that an operation made: read all relevance that arrives there."""
        edge = Edge(self._value(z), layout, Flow(self._run().samples))
        graph.edges[key] = edge
        graph.layouts[z] = layout
        operation.made.append(edge.flow)
        node = z.grad_fn
        assert node is not None
        node.register_prehook(_arriving(edge, key[1]))
        for kind, reader in sinks_of(operation, self.formulation, node, z, edge):
            postings = operation.known.setdefault(kind, Postings())
            node.register_prehook(_sinking(postings, key[1], reader))
        return edge


def _arriving(edge: Edge, number: int) -> Callable[[Sequence[Tensor | None]], None]:
    def hook(slots: Sequence[Tensor | None]) -> None:
        slot = slots[number]
        if slot is not None:
            edge.flow.arrived.add(edge.read(slot))

    return hook


def _sinking(
    postings: Postings, number: int, reader: Callable[[Tensor], Tensor]
) -> Callable[[Sequence[Tensor | None]], None]:
    def hook(slots: Sequence[Tensor | None]) -> None:
        slot = slots[number]
        if slot is not None:
            with torch.no_grad():
                postings.add(reader(slot))

    return hook


def _leaving(
    operation: Operation, borders: list[tuple[int, Edge]], ways: list[int]
) -> Callable[[Sequence[Tensor | None], Any], None]:
    def hook(slots: Sequence[Tensor | None], _: Any) -> None:
        operation.silent += sum(slots[place] is None for place in ways)
        for place, edge in borders:
            slot = slots[place]
            if slot is not None:
                amount = edge.read(slot)
                operation.sent.add(amount)
                edge.flow.sent.add(amount)

    return hook
