"""Choices by data in a graph that runs in Python: one way runs, others do not, and sums stay what they are."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from lxt_compose.torch_internals.traces import cond
from lxt_compose.tracing.choices import take_one


def among_three(x):
    """What three ways give, of which each counts where its condition holds."""

    def zeros(x):
        return torch.zeros_like(x)

    low, high = (x < 0).all(), (x > 0).all()
    ways = [
        cond(low, lambda x: x.exp(), zeros, (x,)),
        cond(high, lambda x: x.sin(), zeros, (x,)),
        cond(~low & ~high | (x > 2).all(), lambda x: x.cos(), zeros, (x,)),
    ]
    return ways[0] + ways[1] + ways[2] + 0 * x.sum()


@pytest.mark.parametrize("shift", [-9, 0, 1.5, 9], ids=["the first", "the last", "the second", "two at once"])
def test_the_ways_that_hold_are_taken(shift):
    x = torch.linspace(-1, 1, 5) + shift
    graph, plain = make_fx(among_three)(x), make_fx(among_three)(x)
    take_one(graph)
    assert torch.equal(graph(x), plain(x))
    names = [str(node.target) for node in graph.graph.nodes]
    assert names.count("aten.add.Tensor") == 1
    assert not any("cond" in name for name in names)


def test_where_none_holds_the_sum_is_zero():
    def function(x):
        no = (x > 9).all()
        ways = [cond(no, way, torch.zeros_like, (x,)) for way in (torch.exp, torch.sin)]
        return ways[0] + ways[1]

    x = torch.linspace(-1, 1, 5)
    graph = make_fx(function)(x)
    take_one(graph)
    assert torch.equal(graph(x), torch.zeros(5))
    assert torch.equal(graph(x + 20), (x + 20).exp() + (x + 20).sin())


def test_choices_between_two_ways_and_sums_of_other_things_stay():
    def function(x):
        a = cond((x > 0).all(), torch.exp, torch.sin, (x,))
        b = cond((x > 1).all(), torch.exp, torch.zeros_like, (x,))
        return a + b, b * 2

    for shift in (-3.0, 0.5, 3.0):
        x = torch.rand(4) + shift
        graph, plain = make_fx(function)(x), make_fx(function)(x)
        take_one(graph)
        assert all(torch.equal(a, b) for a, b in zip(graph(x), plain(x), strict=True))
