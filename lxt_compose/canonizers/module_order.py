"""Finding modules that take the output of another, without an example input: by symbolic traces, or in containers."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import op_of

Test = Callable[[nn.Module], bool]
Use = tuple[nn.Module | None, nn.Module | None]
"""One edge of a forward pass: the output of the first module goes to the second alone; None is anything else."""


def followed_by(model: nn.Module, first: Test, second: Test) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return pairs of modules where the second always takes the output of the first, and nothing else takes it.

    The order is read off a symbolic trace (torch.fx) of a copy that shares the model's parameters, with optional
    arguments of ``forward`` at their defaults; hooks do not run. A module that does not trace (its control flow depends
    on values) is taken apart: its children are traced one by one, and in an ``nn.Sequential`` neighbors follow.

    Args:
        model: left as it is.
        first: which modules can be the first of a pair.
        second: which modules can be the second of a pair.

    Returns:
        The names of the pairs, and for each other `second` module why it is in none.
    """
    names = {module: name for name, module in model.named_modules()}
    wanted = [module for module in names if second(module)]
    if not wanted:
        return [], {}
    uses, untraced = _uses_in(model, _Order(first, second))
    mounted = [module for _, module in model.named_modules(remove_duplicate=False)]
    pairs, reasons = [], {}
    for module in wanted:
        sources = {source for source, taker in uses if taker is module}
        source = next(iter(sources), None)
        takers = {taker for other, taker in uses if other is source}
        if not sources:
            reasons[names[module]] = f"it is not known what it takes, since the model does not trace ({untraced})"
        elif len(sources) > 1:
            reasons[names[module]] = "it does not always take the output of one and the same layer"
        elif source is None:
            reasons[names[module]] = "it does not take the output of such a layer directly"
        elif len(takers) > 1:
            reasons[names[module]] = f"the output of {names[source]} is used elsewhere too"
        elif untraced and max(mounted.count(module), mounted.count(source)) > 1:
            reasons[names[module]] = f"it or {names[source]} is mounted in several places"
        else:
            pairs.append((names[source], names[module]))
    return pairs, reasons


def taken_after_relu(model: nn.Module, first: Test, second: Test) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return pairs of modules where the second always takes the output of the first, as it is or after a ReLU.

    Others may take that output too. How they are
    found: see :func:`followed_by`. What is an identity in eval mode
    (dropout) may stand between them.

    Args:
        model: left as it is.
        first: which modules can be the first of a pair.
        second: which modules can be the second of a pair.

    Returns:
        The names of the pairs, and for each `first` module that is in none why.
    """
    names = {module: name for name, module in model.named_modules()}
    reasons = {
        name: "no layer takes its output, as it is or after a ReLU" for part, name in names.items() if first(part)
    }
    if not reasons:
        return [], {}
    uses, _ = _uses_in(model, _Order(first, second, through_relu=True))
    sources: dict[nn.Module, set[nn.Module | None]] = {}
    for source, taker in uses:
        if taker is not None:
            sources.setdefault(taker, set()).add(source)
    pairs = []
    for taker, found in sources.items():
        for source in found - {None}:
            assert source is not None
            if len(found) == 1:
                pairs.append((names[source], names[taker]))
            else:
                reasons[names[source]] = f"{names[taker]} does not always take its output"
    for name, _ in pairs:
        reasons.pop(name, None)
    return pairs, reasons


@dataclass(frozen=True)
class _Order:
    """A search for pairs in a model: modules of the first kind that precede one of the second."""

    first: Test
    second: Test
    through_relu: bool = False

    def passes(self, module: nn.Module | None) -> bool:
        """Return whether the output of a module counts as its input."""
        kinds = (nn.ReLU, nn.Identity, nn.modules.dropout._DropoutNd)
        return self.through_relu and isinstance(module, kinds)

    def passes_node(self, node: Any, root: nn.Module) -> bool:
        """Return whether the output of a node of a trace counts as its input."""
        if node.op == "call_module":
            return self.passes(root.get_submodule(node.target))
        function = getattr(Tensor, node.target, None) if node.op == "call_method" else node.target
        op = op_of(function) if self.through_relu and callable(function) else None
        return op is not None and op.traits.rectifier


def _uses_in(model: nn.Module, order: _Order) -> tuple[list[Use], str]:
    """Return the uses that were found, and the error of a trace, for which there may be more; empty without one."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        # Code may store the proxies that it runs on in the module, so a copy runs.
        twin: nn.Module | None = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        raised = ""
    except Exception as error:  # models may hold anything, which may refuse to be copied
        twin, raised = None, f"it cannot be copied: {_brief(error)}"
    for parameter, flag in flags:  # hooks may set those of a copy, which are the same
        parameter.requires_grad_(flag)
    root = model if twin is None else twin
    real = dict(zip(root.modules(), model.modules(), strict=True))
    found, untraced = _scan(root, order, raised)
    return [(real.get(a) if a else None, real.get(b) if b else None) for a, b in found], untraced


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


def _scan(module: nn.Module, order: _Order, raised: str) -> tuple[list[Use], str]:
    """See :func:`_uses_in`; `raised` is the reason why a module cannot be traced, if it is known before."""
    first, second = order.first, order.second
    untraced = raised
    if not raised:
        leaves = {part for part in module.modules() if first(part) or second(part) or order.passes(part)}
        try:
            graph = _Tracer(leaves).graph_of(module)
        except Exception as error:  # the model's own code, which was not written for this, may raise anything
            untraced = _brief(error)
        else:
            return list(_uses_of_trace(graph, module, order)), ""
    found: list[Use] = []
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for source, taker in pairwise([None, *(part for part in module if not order.passes(part)), None]):
            a = source if source is not None and first(source) else None
            b = taker if taker is not None and second(taker) else None
            found += [(a, b)] if a or b else []
    for child in module.children():
        if not second(child) and any(map(second, child.modules())):
            found += _scan(child, order, raised)[0]
    return found, untraced


def _uses_of_trace(graph: torch.fx.Graph, root: nn.Module, order: _Order) -> Iterator[Use]:
    first, second = order.first, order.second

    def called(node: Any, test: Test) -> nn.Module | None:
        module = root.get_submodule(node.target) if getattr(node, "op", "") == "call_module" else None
        return module if module is not None and test(module) else None

    for node in graph.nodes:
        source, taker = called(node, first), called(node, second)
        if source is not None:
            users = list(node.users)
            alone = len(users) == 1 and users[0].all_input_nodes == [node]
            yield source, called(users[0], second) if alone else None
        if taker is not None:
            inputs = node.all_input_nodes
            while len(inputs) == 1 and order.passes_node(inputs[0], root):
                inputs = inputs[0].all_input_nodes
            yield called(inputs[0], first) if len(inputs) == 1 else None, taker


_ONE_AT_A_TIME = threading.Lock()


class _Tracer(torch.fx.Tracer):
    """A symbolic tracer that affects neither other threads nor hooks."""

    def __init__(self, leaves: set[nn.Module]) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]
        self._thread, self._leaves = threading.get_ident(), leaves

    def graph_of(self, module: nn.Module) -> torch.fx.Graph:
        """Return the graph of the module's forward, optional arguments at their defaults."""
        parameters = inspect.signature(module.forward).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
            return self.trace(module, defaults)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Return whether a module is not traced into: one of a pair, torch's, or with torch's forward."""
        if module in self._leaves:
            return True
        inherited = type(module).forward.__module__.startswith("torch.nn.modules.")
        return super().is_leaf_module(module, name) or (inherited and not isinstance(module, nn.Sequential))

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        # While tracing, torch.fx diverts the calls of all modules in the process to this method.
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(module, module.forward, args, kwargs)

    def getattr(self, attr: str, value: Any, parameter_proxy_cache: Any) -> Any:
        """Return the attribute itself in other threads."""
        if threading.get_ident() != self._thread:
            return value
        return super().getattr(attr, value, parameter_proxy_cache)
