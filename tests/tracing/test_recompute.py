"""What is cheap is computed again where that lowers the peak of memory: the same bits, and nothing else is repeated."""

from collections import Counter

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from lxt_compose.tracing.lifetimes import Lifetimes
from lxt_compose.tracing.recompute import LARGE, recompute
from lxt_compose.tracing.reuse import reuse

WEIGHTS = [torch.randn(64, 64, generator=torch.Generator().manual_seed(i)) / 8 for i in range(6)]


def there_and_back(x):
    """Layers with activations whose inputs and outputs are both used on the way back."""
    kept = []
    for weight in WEIGHTS:
        z = x @ weight
        x = F.silu(z)
        kept.append((z, x))
    for weight, (z, x) in zip(WEIGHTS[::-1], kept[::-1], strict=True):
        r = x * z.sigmoid() if weight is WEIGHTS[-1] else (r @ weight.t()) * x * z  # noqa: F821
    return r


def shorter(function, *inputs, least=0):
    graph, plain = make_fx(function)(*inputs), make_fx(function)(*inputs)
    recompute(graph, least)
    return graph, plain


def targets(graph):
    return Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")


def peak(graph):
    return max(Lifetimes(graph.graph).held())


def test_activations_are_computed_again_and_products_are_not():
    x = torch.randn(64, 64)
    graph, plain = shorter(there_and_back, x)
    assert peak(graph) < 0.65 * peak(plain)
    assert torch.equal(graph(x), plain(x))
    more = targets(graph) - targets(plain)
    assert set(more) == {"aten.silu.default"}
    assert not targets(plain) - targets(graph)


def test_one_tensor_is_kept_where_several_follow_from_it():
    def function(x, weight):
        q = x @ weight
        a, b = q * 2, torch.cat([-q[:, 32:], q[:, :32]], 1) * 3
        c = a + b
        late = (c @ weight).exp() @ weight
        return late * a + b * c

    x, weight = torch.randn(64, 64), torch.randn(64, 64) / 64
    graph, plain = shorter(function, x, weight)
    assert peak(graph) < peak(plain)
    assert torch.equal(graph(x, weight), plain(x, weight))
    assert targets(graph)["aten.mm.default"] == targets(plain)["aten.mm.default"]
    assert targets(graph)["aten.cat.default"] == 2


@pytest.mark.parametrize("least", [LARGE, 1 << 20])
def test_small_graphs_are_left_as_they_are(least):
    graph, plain = shorter(there_and_back, torch.randn(64, 64), least=least)
    assert targets(graph) == targets(plain)


def test_what_is_drawn_or_changed_in_place_is_kept():
    def function(x):
        noise = torch.rand_like(x)
        changed = x * 2
        early = changed + 1
        changed.add_(noise)
        late = (x @ x).exp() @ x
        return late * early + noise * changed

    x = torch.randn(32, 32)
    graph, plain = shorter(function, x)
    found = targets(graph) - targets(plain)
    assert not {"aten.rand_like.default", "aten.mul.Tensor", "aten.add.Tensor", "aten.add_.Tensor"} & set(found)
    torch.manual_seed(0)
    expected = plain(x)
    torch.manual_seed(0)
    assert torch.equal(graph(x), expected)


def test_outputs_of_an_operation_that_has_several_are_kept():
    def function(x, weight):
        values, _ = (x @ weight).sort()
        early = values * 2
        late = (x @ x).exp() @ x
        return late * early + values

    x, weight = torch.randn(32, 32), torch.randn(32, 32)
    graph, plain = shorter(function, x, weight)
    assert targets(graph)["<built-in function getitem>"] == targets(plain)["<built-in function getitem>"]
    reuse(graph)
    assert torch.equal(graph(x, weight), plain(x, weight))


@pytest.mark.parametrize("training", [False, True])
def test_batch_norms_are_computed_again_if_their_statistics_are_fixed(training):
    def function(x, weight, scale, mean, var):
        y = (x @ weight).view(64, 64, 1)
        z = torch.ops.aten.native_batch_norm(y, scale, None, mean, var, training, 0.1, 1e-5)[0]
        r = z.relu().view(64, 64)
        late = (r @ weight).exp() @ weight
        return late * y.view(64, 64) * r + z.view(64, 64)

    weight = torch.randn(64, 64) / 64
    given = torch.randn(64, 64), weight, torch.rand(64), torch.rand(64), torch.rand(64) + 1
    graph, plain = shorter(function, *given)
    again = targets(graph)["aten.native_batch_norm.default"]
    assert again == (1 if training else 2)
    assert torch.equal(graph(*(x.clone() for x in given)), plain(*(x.clone() for x in given)))
