"""What is read for its shape alone is not kept: the same bits, whatever is in that memory."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from lxt_compose.ops import shapes_only
from lxt_compose.tracing.lifetimes import Lifetimes
from lxt_compose.tracing.shapes_only import without_values

POOLS = {
    "max_pool2d_with_indices_backward": lambda x: F.max_pool2d(x, 2),
    "adaptive_max_pool2d_backward": lambda x: F.adaptive_max_pool2d(x, 3),
    "max_pool3d_with_indices_backward": lambda x: F.max_pool3d(x[None], 2),
    "adaptive_max_pool3d_backward": lambda x: F.adaptive_max_pool3d(x[None], 2),
    "fractional_max_pool2d_backward": lambda x: F.fractional_max_pool2d(x, 2, 3, _random_samples=torch.rand(2, 4, 2)),
    "fractional_max_pool3d_backward": lambda x: F.fractional_max_pool3d(
        x[None], 2, 2, _random_samples=torch.rand(1, 2, 3)
    ),
    "avg_pool2d_backward": lambda x: F.avg_pool2d(x, 2), "avg_pool3d_backward": lambda x: F.avg_pool3d(x[None], 2),
    "_adaptive_avg_pool2d_backward": lambda x: F.adaptive_avg_pool2d(x, 3),
    "_adaptive_avg_pool3d_backward": lambda x: F.adaptive_avg_pool3d(x[None], 2),
}  # fmt: skip


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", POOLS)
def test_no_value_of_it_is_read(name, layout):
    def gradient(x, r):
        x = x.detach().requires_grad_()
        y = POOLS[name](x * 2)
        return torch.autograd.grad(y, x, r[: y.numel()].view(y.shape))[0]

    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    r = torch.randn(2 * 4 * 8 * 8)
    graph, plain = make_fx(gradient)(x, r), make_fx(gradient)(x, r)
    assert name in {node.target.name().partition("::")[2] for node in graph.graph.nodes if "backward" in node.name}
    without_values(graph.graph)
    assert [node for node in graph.graph.nodes if "empty_strided" in node.name]
    for node in list(graph.graph.nodes):
        if "empty_strided" in node.name:  # the same memory, full of NaN
            with graph.graph.inserting_after(node):
                filled = graph.graph.call_function(torch.ops.aten.fill.Scalar, (node, float("nan")))
            node.replace_all_uses_with(filled, lambda user, filled=filled: user is not filled)
    graph.recompile()
    if "indices" in "".join(map(str, graph.graph.nodes)) or "fractional" not in name:
        assert torch.equal(graph(x, r), plain(x, r))


def test_every_operation_of_the_table_is_tried():
    assert set(shapes_only._POOLS) == set(POOLS)


def test_a_tensor_that_is_needed_later_is_used_as_it_is():
    def gradient(x, r):
        x = x.detach().requires_grad_()
        given = x * 2
        (found,) = torch.autograd.grad(F.max_pool2d(given, 2), x, r)
        return found * given.detach()

    graph = make_fx(gradient)(torch.randn(1, 1, 4, 4), torch.randn(1, 1, 2, 2))
    without_values(graph.graph)
    assert not [node for node in graph.graph.nodes if "empty" in node.name]


def test_less_is_held():
    def gradient(x, r):
        x = x.detach().requires_grad_()
        y = F.max_pool2d(x.sin(), 2)
        late = (y.detach() @ y.detach()) * r
        return torch.autograd.grad(y, x, late)[0]

    graph = make_fx(gradient)(torch.randn(1, 1, 64, 64), torch.randn(1, 1, 32, 32))
    before = Lifetimes(graph.graph).held()
    without_values(graph.graph)
    after = Lifetimes(graph.graph).held()
    middle = len(before) // 2
    assert after[middle] < before[middle]
