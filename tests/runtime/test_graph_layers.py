"""Layers of graph nets, which gather, scatter and normalize over neighbors: complete, and right element by element."""

import pytest
import torch
from support import Fn, assert_close, attribute, both_formulations
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, default_rules, presets
from lxt_compose import attribute as explain

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")
SOURCE = torch.tensor([0, 1, 2, 3, 4, 0, 2, 5, 5])
TARGET = torch.tensor([1, 2, 3, 4, 0, 3, 0, 1, 0])
NODES = 7  # the last has no neighbors
ADJACENCY = torch.zeros(NODES, NODES, dtype=torch.float64).index_put((TARGET, SOURCE), torch.ones(()).double())


def spread(index, x):
    return index[:, None].expand_as(x)


def scatter(x, index, way):
    """As libraries for graphs write it with torch alone."""
    if way == "sum":
        return x.new_zeros(NODES, x.shape[1]).scatter_add_(0, spread(index, x), x)
    if way == "mean":
        count = x.new_zeros(NODES).scatter_add_(0, index, x.new_ones(len(index))).clamp(min=1)
        return scatter(x, index, "sum") / count[:, None]
    if way == "mul":
        return x.new_ones(NODES, x.shape[1]).scatter_reduce_(0, spread(index, x), x, "prod", include_self=True)
    return x.new_zeros(NODES, x.shape[1]).scatter_reduce_(0, spread(index, x), x, f"a{way}", include_self=False)


def softmax(x, index):
    largest = scatter(x.detach(), index, "max")
    exponential = (x - largest.index_select(0, index)).exp()
    return exponential / (scatter(exponential, index, "sum") + 1e-16).index_select(0, index)


class Layer(nn.Module):
    """Sum, mean, maximum or product of the neighbors."""

    def __init__(self, way):
        super().__init__()
        self.way, self.layer = way, nn.Linear(3, 4, bias=False)

    def forward(self, x):
        return scatter(self.layer(x).index_select(0, SOURCE), TARGET, self.way)


class SparseLayer(Layer):
    """The same by a sparse matrix."""

    def forward(self, x):
        reduce = {"max": "amax", "min": "amin"}.get(self.way, self.way)
        return torch.sparse.mm(ADJACENCY.to_sparse_csr(), self.layer(x), reduce)


class Attention(nn.Module):
    """Neighbors weighted by a softmax over them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4, bias=False)
        self.source, self.target = nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(4, 1))

    def forward(self, x):
        h = self.layer(x)
        score = F.leaky_relu((h @ self.source)[SOURCE] + (h @ self.target)[TARGET], 0.2)
        return scatter(h[SOURCE] * softmax(score, TARGET), TARGET, "sum")


WAYS = ("sum", "mean", "max", "min", "mul")
LAYERS = {way: lambda way=way: Layer(way) for way in WAYS}
LAYERS |= {f"sparse {way}": lambda way=way: SparseLayer(way) for way in WAYS[:-1]} | {"attention": Attention}


def net(name):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    return nn.Sequential(
        layer, nn.ReLU(), nn.Linear(4, 2, bias=False), Fn(lambda self, x: x.mean(0, keepdim=True))
    ).double()


def features():
    return torch.randn(NODES, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact(formulation):
    return Composite(formulation=formulation, defaults=default_rules(formulation, epsilon=0.0), strict=True)


@both_formulations
@pytest.mark.parametrize("name", LAYERS)
def test_all_relevance_of_a_graph_net_arrives(name, formulation):
    """Whatever reduces the neighbors; what a softmax keeps, and the ones of an empty product, are booked."""
    model, x = net(name), features()
    with exact(formulation).register(model) as registration:
        registration.model(x.clone().requires_grad_())
    assert registration.report().complete
    found = attribute(model, x, exact(formulation), 1)
    if name not in ("attention", "mul"):
        assert_close(found.sum(), model(x)[0, 1].detach(), 1e-7)
    book = explain(
        model, x, target=lambda y: y[0, 1], composite=exact(formulation), dims=("node", "feature"), ledger=True
    )
    assert book.ledger.unaccounted < 1e-9


@both_formulations
@pytest.mark.parametrize("way", ["sum", "mean", "max", "min"])
def test_scatter_and_sparse_matrices_say_the_same(way, formulation):
    """Element by element; and for sums and means, as with a dense matrix."""
    x = features()
    found = attribute(net(way), x, exact(formulation), 1)
    assert_close(found, attribute(net(f"sparse {way}"), x, exact(formulation), 1), 1e-7)
    if way in ("sum", "mean"):
        matrix = ADJACENCY if way == "sum" else ADJACENCY / ADJACENCY.sum(1, keepdim=True).clamp(min=1)
        dense = net(way)
        dense[0] = Fn(lambda self, x: matrix @ self.layer(x), layer=dense[0].layer)
        assert_close(found, attribute(dense, x, exact(formulation), 1), 1e-7)


NEIGHBORS = [SOURCE[node == TARGET] for node in range(NODES)]


@both_formulations
def test_the_largest_neighbor_gets_all(formulation):
    x = features()
    model = Fn(lambda self, x: scatter(x[SOURCE], TARGET, "max"))
    expected = torch.zeros_like(x)
    for neighbors in filter(len, NEIGHBORS):
        for column in range(3):
            best = neighbors[x[neighbors, column].argmax()]
            expected[best, column] += x[best, column]
    assert_close(attribute(model, x, exact(formulation)), expected)


@both_formulations
def test_neighbors_that_are_multiplied_share_evenly(formulation):
    x = features()
    model = Fn(lambda self, x: scatter(x[SOURCE], TARGET, "mul"))
    expected = torch.zeros_like(x)
    for neighbors in NEIGHBORS:
        for neighbor in neighbors:
            expected[neighbor] += x[neighbors].prod(0) / len(neighbors)
    assert_close(attribute(model, x, exact(formulation)), expected)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp", "epsilon_plus_flat", "epsilon_plus"])
def test_every_preset_covers_graph_nets(preset, name):
    with presets.find(preset)().register(net(name)) as registration:
        registration.model(features().requires_grad_()).sum().backward()
    assert registration.report().complete
