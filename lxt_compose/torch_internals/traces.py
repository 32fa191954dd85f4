"""Private parts of torch for graphs that `make_fx` traces: traces, schemas, dispatch modes, trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_map_only as tree_map_only
from torch.utils._pytree import tree_unflatten as tree_unflatten

_PROXY = torch._C._TorchDispatchModeKey.PROXY


def is_traced() -> bool:
    """Return whether a graph is being traced (`make_fx`), so that tensors have no values.

    `torch.fx.experimental.proxy_tensor.get_proxy_mode()` says the same, but takes a second to import. Unnecessary once
    `torch.compiler.is_compiling()` is true under `make_fx` too.
    """
    return torch._C._get_dispatch_mode(_PROXY) is not None


def proxy_of(tensor: Tensor) -> Any:
    """Return the proxy of a tensor in the graph that is being traced; None if it is no part of that.

    `torch.fx.experimental.proxy_tensor.get_proxy_slot` says the same, with the tracer of `get_proxy_mode()`.
    """
    mode: Any = torch._C._get_dispatch_mode(_PROXY)
    return None if mode is None else mode.tracer.tensor_tracker.get(tensor)


def is_fake(tensor: Tensor) -> bool:
    """Return whether a tensor has a shape and no values."""
    return type(tensor).__name__ == "FakeTensor"


def on_cpu(x: Tensor) -> Tensor:
    """Return a tensor on the CPU; itself in a graph, whose results stay where they are."""
    return x if is_traced() else x.cpu()


def has_symbolic_shape(tensor: Tensor) -> bool:
    """Return whether the shape of a tensor is symbolic: a graph for all shapes is being traced.

    Unnecessary once tensors have a public way to tell.
    """
    return bool(tensor._has_symbolic_sizes_strides)


def example_shape(tensor: Tensor) -> torch.Size:
    """Return the shape of a tensor in numbers; symbolic sizes have those of the example.

    Unnecessary once symbolic sizes tell them publicly without becoming constants.
    """
    sizes: list[Any] = list(tensor.shape)
    return torch.Size([size.node.hint if isinstance(size, torch.SymInt) else size for size in sizes])


def cond(condition: Tensor, then: Callable[..., Tensor], otherwise: Callable[..., Tensor], given: Any) -> Tensor:
    """Return ``then(*given)`` or ``otherwise(*given)`` as one operation of a graph that is being traced.

    Neither may change what is given, or use another tensor. `torch.cond` is the public form; it compiles both branches
    by dynamo, which does not know the objects of this library.
    """
    ways = [lambda *tensors, way=way: (way(*tensors),) for way in (then, otherwise)]  # compilers expect a tuple
    result: Tensor = torch.ops.higher_order.cond(condition, *ways, tuple(given))[0]
    return result


def schema_of(target: Any) -> Any:
    """Return the schema of an operation of ATen: its name, its arguments, and what it changes; None of other functions.

    Unnecessary once operations tell their schema publicly.
    """
    return getattr(target, "_schema", None)


def remove_unused(graph: Graph) -> None:
    """Remove the nodes whose results nothing uses, but for those that change a tensor.

    `Graph.eliminate_dead_code` of torch 2.4 removes these too. Unnecessary once torch 2.5 is the oldest supported.
    """
    if "is_impure_node" in signature(graph.eliminate_dead_code).parameters:
        graph.eliminate_dead_code()
        return
    for node in reversed(graph.nodes):
        changes = getattr(schema_of(node.target), "is_mutable", False)
        if not (node.users or changes or node.is_impure()):
            graph.erase_node(node)


NN_FUNCTIONS: Any = torch._C._nn
"""The module with those functions of `torch.nn.functional` that are one operation: ``gelu``, ``silu`` ..."""


def tables_of(module: nn.Module) -> list[tuple[str, dict[Any, Any]]]:
    """Return the tables of what a module owns, each with a word for it.

    A comparison of these takes microseconds for a model of many modules; the public iterators take milliseconds.
    """
    return [
        ("modules", module._modules),
        ("parameters", module._parameters),
        ("buffers", module._buffers),
        ("forward pre-hooks", module._forward_pre_hooks),
        ("forward hooks", module._forward_hooks),
    ]


# ---- writing down ----------------------------------------------------------------------------------------------------

Names = Sequence[str | None]
"""The names of the dimensions of a tensor; None for one whose size is fixed."""


def graph_of(function: Callable[..., Any], inputs: Sequence[Tensor]) -> GraphModule:
    """Return what a function does with tensors of these shapes, as a graph of ATen's operations.

    Tensors that are no inputs are attributes of the graph: the very tensors, not copies.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # it takes a second to import

    return make_fx(function)(*inputs)


def differentiable_graph_of(graph: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """Return a graph whose derivatives by autograd are right: without changes in place, and with norms taken apart.

    torch's own formulas for derivatives ignore the statistics that norms put out and take in, and there is none for the
    backward of some activations. Unnecessary once `torch.native_layer_norm` and its kin pass on the gradient of all
    their outputs, and each backward has a derivative.
    """
    from torch._decomp import get_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    aten = torch.ops.aten
    names = (*_WITH_STATISTICS, *_WITHOUT_DERIVATIVE)
    taken_apart = [getattr(aten, name) for name in names if hasattr(aten, name)]
    table: Any = get_decompositions(taken_apart)
    return make_fx(torch.func.functionalize(graph, remove="mutations"), decomposition_table=table)(*inputs)


_WITHOUT_DERIVATIVE = ("silu_backward", "mish_backward")

_WITH_STATISTICS = """
    native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward native_batch_norm
    native_batch_norm_backward _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training cudnn_batch_norm cudnn_batch_norm_backward batch_norm_backward
    _batch_norm_with_update _batch_norm_no_update _fused_rms_norm _fused_rms_norm_backward
""".split()


def symbolic_graph_of(
    function: Callable[..., Any], inputs: Sequence[Tensor], names: Sequence[Names]
) -> tuple[GraphModule, Callable[[Mapping[str, int]], bool]]:
    """Return the graph for all sizes of the named dimensions, and a function that says whether it holds for some.

    Unnecessary once `torch.export` traces functions that run a backward pass.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    symbols: dict[str, Any] = {}
    fakes = []
    for x, dims in zip(inputs, names, strict=True):
        kinds = [DimDynamic.STATIC if name is None else DimDynamic.DUCK for name in dims]
        context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
        fakes.append(mode.from_tensor(x, symbolic_context=context))
        symbols |= {name: size for name, size in zip(dims, fakes[-1].shape, strict=True) if name is not None}
    graph = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*fakes)
    order, placeholders = list(symbols), list(symbols.values())
    code = shapes.produce_guards_expression(placeholders)

    def holds(sizes: Mapping[str, int]) -> bool:
        return code is None or bool(shapes.evaluate_guards_expression(code, [sizes[name] for name in order]))

    return graph, holds


def compiled(
    graph: GraphModule, inputs: Sequence[Tensor], *, dynamic: bool, options: Mapping[str, Any]
) -> Callable[..., Sequence[Tensor]]:
    """Return a graph of ATen's operations as inductor compiles it.

    For one shape without the checks of `torch.compile`, which look at each weight in each call; the caller has checked
    that shapes and dtypes are those of the inputs. For any shape by `torch.compile`.

    Unnecessary once `torch.compile` has an option for inputs that were checked.
    """
    if any(node.target is torch.ops.higher_order.cond for node in graph.graph.nodes):
        options = {"layout_optimization": False, **options}  # branches expect the layout that they were written with
    if dynamic:
        return torch.compile(graph, dynamic=True, options=dict(options))
    from torch._inductor.compile_fx import compile_fx

    result: Any = compile_fx(graph, list(inputs), config_patches=dict(options))
    return result


@contextmanager
def untraced() -> Iterator[None]:
    """Keep this context out of the trace, so that it computes with values."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        yield


@contextmanager
def as_compilers_see() -> Iterator[None]:
    """Make `torch.compiler.is_compiling()` true in this context, so that models do not read values of tensors.

    Unnecessary once `make_fx` says so itself.
    """
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
