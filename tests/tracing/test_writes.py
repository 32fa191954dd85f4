"""Changes in place become results of their own where nobody else sees them; copies go where nothing changes."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from lxt_compose.tracing import Program
from lxt_compose.tracing.passes import simplify, without_second_names
from lxt_compose.tracing.writes import without_copies, without_writes

W = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))


def written(function, *inputs):
    graph, plain = make_fx(function)(*inputs), make_fx(function)(*inputs)
    without_second_names(graph)
    without_writes(graph.graph)
    without_copies(graph.graph)
    simplify(graph)
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return graph, plain, [name for name in names if "_." in name], names


FREE = {
    "relu": lambda x: F.relu_(x @ W) * 2,
    "by identity": lambda x: (y := x @ W, y.add_(x), y * y)[2],
    "one after the other": lambda x: (y := x @ W).mul_(x).add_(1).clamp_(min=0) + y,
    "a view made later": lambda x: (y := x @ W, y.mul_(2), y.view(-1).sin())[2],
    "a copy before": lambda x: (y := x @ W, z := y.clone(), y.add_(x), y * z)[3],
    "a part of several results": lambda x: (y := x.sort().values, y.mul_(2), y + x)[2],
    "filled": lambda x: (y := x.sin(), y.fill_(3.0), y + x)[2],
}


@pytest.mark.parametrize("name", FREE)
def test_a_change_in_place_becomes_a_result(name):
    x = torch.randn(4, 4)
    graph, plain, left, names = written(FREE[name], x)
    assert not left
    assert "aten.clone.default" not in names
    assert torch.equal(graph(x.clone()), plain(x.clone()))


SEEN = {
    "an older view": lambda x: (y := x @ W, v := y[0], y.add_(1), y * v)[3],
    "through a view": lambda x: (y := x @ W, y[0].add_(1), y * 2)[2],
    "an input": lambda x: (x.add_(1), x * 2)[1],
    "a weight": lambda x: (K.add_(0), x @ K)[1],
    "another layout": lambda x: (y := (x @ W).t(), y.add_(x.expand(4, 4)), y * 2)[2],
}
K = W.clone()


@pytest.mark.parametrize("name", [name for name in SEEN if name != "another layout"])
def test_what_others_see_is_changed_in_place_as_before(name):
    x = torch.randn(4, 4)
    graph, plain, left, _ = written(SEEN[name], x)
    assert left
    assert torch.equal(graph(x.clone()), plain(x.clone()))


def test_the_layout_of_the_memory_stays():
    x = torch.randn(4, 4)
    graph, plain, *_ = written(SEEN["another layout"], x)
    assert graph(x).stride() == plain(x).stride()
    assert torch.equal(graph(x), plain(x))
    mixed = lambda x, y: (z := x.sin().to(torch.float32), z.add_(y))[1]  # noqa: E731
    graph, *_ = written(mixed, x, x.double())
    assert graph(x, x.double()).dtype == torch.float32


def test_copies_that_leave_the_graph_or_protect_stay():
    x = torch.randn(4, 4)
    for function in (lambda x: x.clone(), lambda x: (y := x.clone(), y[0].add_(1), y + x)[2]):
        graph, plain, _, names = written(function, x)
        assert "aten.clone.default" in names
        assert torch.equal(graph(x), plain(x))
        assert graph(x).data_ptr() != x.data_ptr()
    program = Program(lambda x: x.clone().mul_(2), [x])
    assert torch.equal(program(x), x * 2)
    assert torch.equal(program(x), x * 2)
