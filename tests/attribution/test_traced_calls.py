"""Calls of a graph: arguments by name, what does not fit and how it is said, threads, copies."""

import copy
import pickle
import threading

import pytest
import torch
from support import Fn
from torch import nn

from lxt_compose import TraceError, attribute, presets


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def two_inputs():
    torch.manual_seed(0)
    model = Fn(lambda self, x, parts: self.a(x), a=nn.Linear(6, 3), b=nn.Linear(6, 3)).eval()
    model.forward = lambda x, parts, flag=True: model.a(x) + 2 * model.b(parts["y"][0])
    return model, {"x": torch.randn(2, 6), "parts": {"y": [torch.randn(2, 6)]}, "flag": True}


def test_arguments_by_name_come_in_any_order():
    model, inputs = two_inputs()
    traced = presets.attnlrp().trace(model, inputs, target=1)
    found, expected = traced(dict(reversed(inputs.items()))).relevance, attribute(model, inputs, target=1).relevance
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"flag": False}, "example: flag: False instead of True; give such inputs, or trace it anew for these"),
        ({"parts": {"y": []}}, r"parts\.y: a list of 0 instead of a list of 1"),
        ({"parts": {"z": [torch.ones(2, 6)]}}, "parts: 'y' missing and 'z' more"),
        ({"parts": {"y": [torch.ones(2, 6).double()]}}, r"parts\.y\[0\]: a tensor of torch.float64 on cpu"),
        ({"x": torch.ones(2, 6, device="meta")}, "x: a tensor of torch.float32 on meta with 2 dimensions instead of"),
    ],
    ids=["flag", "list", "dict", "dtype", "device"],
)
def test_the_argument_that_is_not_like_the_example_is_named(changed, said):
    model, inputs = two_inputs()
    traced = presets.attnlrp().trace(model, inputs, target=1)
    with pytest.raises(TraceError, match=said):
        traced(inputs | changed)


def test_no_samples_at_all():
    traced = presets.attnlrp().trace(mlp(), torch.randn(2, 6), target=1, dynamic=True)
    with pytest.raises(ValueError, match="no samples"):
        traced(torch.randn(0, 6))


def test_several_threads_that_call_one_graph_with_shapes_that_need_their_own():
    model, found = mlp(), {}
    traced = presets.attnlrp().trace(model, torch.randn(3, 6), target=1, dynamic=True)
    samples = [torch.randn(size, 6) for size in (1, 1, 2, 3, 1, 3)]

    def call(place):
        found[place] = traced(samples[place]).relevance

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(samples))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, x in enumerate(samples):
        assert torch.equal(found[place], attribute(model, x, target=1).relevance)


def test_a_copy_goes_with_the_copy_of_its_model_and_is_no_pickle():
    model, x = mlp(), torch.randn(2, 6)
    traced = presets.attnlrp().trace(model, x, target=lambda y: y[:, 1])
    twin, other = copy.deepcopy((model, traced))
    with torch.no_grad():
        twin[0].weight.mul_(2)
    assert torch.equal(other(x).relevance, attribute(twin, x, target=1).relevance)
    assert torch.equal(traced(x).relevance, attribute(model, x, target=1).relevance)
    twin[1].inplace = True
    with pytest.raises(TraceError, match="attribute 'inplace' of '1'"):
        other(x)
    traced(x)
    with pytest.raises(TypeError, match=r"cannot be pickled.*use save\(path\)"):
        pickle.dumps(traced)


def test_constants_of_one_number_that_the_model_makes_are_a_part_of_the_graph():
    model = Fn(lambda self, x: self.a(x) * torch.tensor(0.5) / torch.tensor([3.0]).sqrt(), a=nn.Linear(6, 3)).eval()
    x = torch.randn(2, 6)
    traced = presets.attnlrp().trace(model, x, target=1)
    assert torch.equal(traced(x).relevance, attribute(model, x, target=1).relevance)
