"""Reductions that leave out what was there before: torch's gradient counts it as a tie all the same."""

import pytest
import torch
from support import Fn, assert_close, attribute, both_formulations

from lxt_compose import Composite
from lxt_compose.ops import op_of
from lxt_compose.runtime.selection_gradients import with_right_selection

pytestmark = pytest.mark.filterwarnings("ignore:index_reduce")
INDEX = torch.tensor([0, 0, 1, 3])
CALLS = {
    "scatter_reduce": lambda into, x, way: into.scatter_reduce(0, INDEX, x, way, include_self=False),
    "scatter_reduce_": lambda into, x, way: into.scatter_reduce_(0, INDEX, x, way, include_self=False),
    "torch.scatter_reduce": lambda into, x, way: torch.scatter_reduce(into, 0, INDEX, x, way, include_self=False),
    "reduce by name": lambda into, x, way: into.scatter_reduce(0, INDEX, x, reduce=way, include_self=False),
    "index_reduce": lambda into, x, way: into.index_reduce(0, INDEX, x, way, include_self=False),
    "index_reduce_": lambda into, x, way: into.index_reduce_(0, INDEX, x, way, include_self=False),
}


@both_formulations
@pytest.mark.parametrize("way", ["amax", "amin"])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_left_out_takes_no_share(name, way, formulation):
    """What was there equals the result at 0, 1 and 3, and is kept at 2."""
    x = torch.tensor([5.0, 2.0, 1.0, -3.0], dtype=torch.float64)
    best = x[0] if way == "amax" else x[1]
    model = Fn(lambda self, x: CALLS[name](torch.stack([best, x.new_tensor(1.0), x.new_tensor(7.0), x[3] * 1]), x, way))
    expected = torch.tensor([5.0 * (way == "amax"), 2.0 * (way == "amin"), 1.0, -3.0]).double()
    plain = model(x)
    with Composite(formulation=formulation).register(model) as registration:
        assert torch.equal(registration.model(x.clone().requires_grad_()), plain)
    assert_close(attribute(model, x, Composite(formulation=formulation)), expected)


def test_torch_itself_loses_a_part():
    """If this fails, torch has mended it, and the function can go."""
    x = torch.tensor([5.0, 2.0], requires_grad=True)
    torch.tensor([5.0]).scatter_reduce(0, torch.tensor([0, 0]), x, "amax", include_self=False).sum().backward()
    assert x.grad.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("function", [torch.scatter_reduce, torch.add, torch.segment_reduce])
def test_other_functions_stay_what_they_are(function):
    wrapped = with_right_selection(function, op_of(function))
    assert (wrapped is function) == (function is not torch.scatter_reduce)
    assert wrapped.__name__ == function.__name__


def test_values_are_torchs_own_in_all_other_ways():
    reduce = with_right_selection(torch.scatter_reduce, op_of(torch.scatter_reduce))
    x, index = torch.tensor([3, -2, 7]), torch.tensor([0, 0, 1])
    for into in (torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0])):
        for way in ("sum", "mean", "amax", "amin", "prod"):
            for include_self in (True, False):
                given = (into, 0, index, x.to(into.dtype), way)
                found = reduce(*given, include_self=include_self)
                assert torch.equal(found, torch.scatter_reduce(*given, include_self=include_self))
                assert into[0] == 1
