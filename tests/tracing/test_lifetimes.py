"""How much memory a graph holds at each step: views have none of their own, outputs of one operation each theirs."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from lxt_compose.tracing.lifetimes import Lifetimes


def held(function, *inputs):
    graph = make_fx(function)(*inputs).graph
    lifetimes = Lifetimes(graph)
    return {node.name: size for node, size in zip(lifetimes.nodes, lifetimes.held(), strict=True)}


def test_memory_is_held_from_where_it_is_made_to_its_last_use_by_any_view():
    def function(x):
        a = x * 2  # 40 bytes
        b = a.view(10)[:5]
        c = x.sum()  # 4 bytes
        d = b + c  # 20 bytes
        return d * 3

    found = held(function, torch.ones(2, 5))
    assert found["mul"] == found["view"] == 40
    assert found["sum_1"] == 44
    assert found["add"] == 64
    assert found["mul_1"] == 20 + 20
    assert found["output"] == 20


def test_outputs_of_one_operation_are_freed_one_by_one():
    def function(x):
        values, places = x.max(dim=1)  # 3 floats, 3 integers of 8 bytes
        picked = x.gather(1, places[:, None])  # 3 floats
        return picked[:, 0] + values

    found = held(function, torch.ones(3, 4))
    assert found["gather"] == 12 + 24 + 12
    assert found["add"] == 12 + 12 + 12


def test_pieces_of_a_split_are_views_of_the_whole():
    found = held(lambda x: x.exp().split(2)[1] + 1, torch.ones(4))
    assert found["add"] == 16 + 8
