"""Binding the operations of a graph to torch's Python functions, whose calls cost half of those of ``torch.ops``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from ..torch_internals.traces import NN_FUNCTIONS, TorchDispatchMode, schema_of, tree_map_only

_PLACES = (Tensor, NN_FUNCTIONS, torch)
"""Where torch has functions that call one operation; the last that fits is taken."""


class _Recorder(TorchDispatchMode):
    """Records which operations run, with which arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Binding(Interpreter):
    """Runs a graph once, and finds for each operation the function of torch that calls it and nothing else."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.found: dict[Node, Callable[..., Any]] = {}
        self._known: dict[Any, Callable[..., Any] | None] = {}
        """What was found for an operation with arguments of these kinds: the layers of a model are alike."""

    def run_node(self, n: Node) -> Any:
        """See :meth:`torch.fx.Interpreter.run_node`."""
        if n.op == "call_function" and schema_of(n.target) is not None:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            key = (n.target, _kind(args), _kind(kwargs))
            if key not in self._known:
                self._known[key] = _function_for(n.target, args, kwargs)
            if (function := self._known[key]) is not None:
                self.found[n] = function
        return super().run_node(n)


def _kind(value: Any) -> Any:
    """Return arguments with shapes and dtypes for tensors, as something to look up by."""
    if isinstance(value, Tensor):
        return (value.dtype, value.device, value.shape, value.stride())
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *map(_kind, value))
    if isinstance(value, dict):
        return tuple((key, _kind(item)) for key, item in value.items())
    return (type(value).__name__, repr(value))


def _function_for(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any] | None:
    """Return torch's function that runs an operation alone, with these arguments; None if there is none."""
    schema: Any = schema_of(target)
    if schema.is_mutable:  # it is called on copies
        args, kwargs = tree_map_only(Tensor, Tensor.clone, (args, kwargs))
    name = schema.name.partition("::")[2]
    candidates = (getattr(place, name, None) for place in reversed(_PLACES))
    return next((one for one in candidates if one is not None and _calls(one, target, args, kwargs)), None)


def _calls(function: Callable[..., Any], target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a function runs this operation alone, with these arguments."""
    try:
        with _Recorder() as recorder:
            function(*args, **kwargs)
        with _Recorder() as direct:
            target(*args, **kwargs)
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return False
    return len(recorder.calls) == 1 and _same(recorder.calls[0], direct.calls[0])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


def bind(module: GraphModule, *inputs: Any) -> None:
    """Exchange the operations of a graph for functions of torch that call exactly the same.

    Args:
        module: the graph; changed.
        inputs: what to run it on once.
    """
    binding = _Binding(module)
    with torch.no_grad():
        binding.run(*inputs)
    for node, function in binding.found.items():
        if getattr(Tensor, function.__name__, None) is function:
            node.op, node.target = "call_method", function.__name__
        else:
            node.target = function
    module.recompile()
