"""Graph nets of torch_geometric: six nodes, and a graph for a sample."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, Maker, numbers, spread

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 5, 5, 1], [1, 2, 3, 4, 0, 3, 0, 1, 0, 4]])
NODES = ("node", "feature")


class Net(nn.Module):
    """Two layers of a kind, a pool over all nodes, and a head."""

    def __init__(self, make: Callable[[int, int], nn.Module], pool: Any, given: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.one, self.two, self.head = make(5, 8), make(8, 8), nn.Linear(8, 3)
        self.pool, self.given = pool, given

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits of the graph."""
        hidden = torch.relu(self.one(x, edge_index, *self.given))
        hidden = torch.relu(self.two(hidden, edge_index, *self.given))
        return self.head(self.pool(hidden, torch.zeros(len(x), dtype=torch.long)))


def _case(model: nn.Module, goal: Any) -> Case:
    return Case(spread(model), {"x": numbers(6, 5), "edge_index": EDGES}, goal, {"x": NODES})


def _ready(name: str, **options: Any) -> Maker:
    """A model that comes whole: what it says of the third node."""
    return lambda: _case(
        getattr(import_module("torch_geometric.nn.models"), name)(5, 8, 2, 3, **options), lambda y: y[2, 1]
    )


def _layers(name: str, pool: str = "global_mean_pool", given: tuple[Any, ...] = (), **options: Any) -> Maker:
    """Layers of one kind, and what they say of the graph."""

    def make() -> Case:
        parts = import_module("torch_geometric.nn")
        net = Net(lambda a, b: getattr(parts, name)(a, b, **options), getattr(parts, pool), given)
        return _case(net, lambda y: y[:, 1])

    return make


def _edge_conv() -> Case:
    parts = import_module("torch_geometric.nn")
    net = Net(lambda a, b: parts.EdgeConv(nn.Linear(2 * a, b)), parts.global_max_pool)
    return _case(net, lambda y: y[:, 1])


CASES: dict[str, Maker] = {
    "GCN": _ready("GCN"),
    "GraphSAGE": _ready("GraphSAGE"),
    "GraphSAGE max": _ready("GraphSAGE", aggr="max"),
    "GIN": _ready("GIN"),
    "GAT": _ready("GAT", heads=2),
    "GATv2": _ready("GAT", heads=2, v2=True),
    "PNA": _ready(
        "PNA", aggregators=["mean", "max", "std"], scalers=["identity", "amplification"], deg=torch.tensor([0, 3, 3])
    ),
    "JumpingKnowledge": _ready("GCN", jk="lstm"),
    "TransformerConv": _layers("TransformerConv"),
    "ChebConv": _layers("ChebConv", K=3),
    "SGConv": _layers("SGConv", K=2),
    "ARMAConv": _layers("ARMAConv", "global_add_pool"),
    "GatedGraphConv": lambda: _case(
        import_module("torch_geometric.nn").GatedGraphConv(8, num_layers=2), lambda y: y[2, 1]
    ),
    "EdgeConv": _edge_conv,
    "RGCNConv": _layers("RGCNConv", given=(torch.arange(10) % 2,), num_relations=2),
    "GENConv": _layers("GENConv", aggr="softmax"),
}
