"""Elementwise operations write into operands that nobody needs any longer: the same bits, inputs stay what they are."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from lxt_compose.tracing.reuse import reuse


def written(function, *inputs):
    """Which nodes write into which others, after the graph was found to give the same bits and to leave its inputs."""
    graph, before = make_fx(function)(*inputs), [x.clone() for x in inputs]
    expected = graph(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    copies = [x.clone() for x in expected]
    reuse(graph)
    for _ in range(2):
        found = graph(*inputs)
        found = found if isinstance(found, tuple) else (found,)
        assert all(torch.equal(a, b) for a, b in zip(found, copies, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    return {node.name: node.kwargs["out"].name for node in graph.graph.nodes if "out" in node.kwargs}


def test_a_chain_writes_into_its_first_tensor():
    found = written(lambda x: F.silu((x * 2 + 1).clamp(min=0)), torch.randn(3, 4))
    assert list(found.values()) == ["mul", "add", "clamp"]


def test_an_operand_that_is_used_later_or_that_somebody_else_owns_is_left():
    def function(x, weight):
        a = x * 2
        b = a + 1
        view = a.t()
        c = b * 3  # into b
        return c.sum(0, keepdim=True) * view, weight * 2, x + weight

    assert written(function, torch.randn(4, 4), torch.randn(4, 4)) == {"mul_1": "add", "mul_2": "t"}


def test_other_shapes_dtypes_layouts_and_views_that_overlap_need_memory_of_their_own():
    def function(x):
        a, b, c, d = x * 2, x * 3, x * 4, x * 5
        wider = a.sum(0) + b  # b fits, the sum does not
        compared = c > 0
        square = d * d.t()  # the same memory in another order
        both = (x * 6).view(-1)
        return wider, compared, square, both * both

    found = written(function, torch.randn(4, 4))
    assert found == {"add": "mul_1", "mul_6": "view"}


def test_choices_by_masks_and_the_second_operand():
    def function(x, y):
        return torch.where(x > 0, x * 2, y * 3)

    assert written(function, torch.randn(4), torch.randn(4)) == {"where": "mul"}


def test_pieces_of_memory_are_not_written_over_while_others_of_it_are_needed():
    def function(x):
        first, second = (x * 2).chunk(2)
        early = first + 1
        return early, second * 3

    found = written(function, torch.randn(4))
    assert "add" not in found


def test_what_an_operation_makes_beside_others_is_written_over():
    def function(x):
        values, places = x.max(dim=1)
        return values * 2, places

    assert len(written(function, torch.randn(3, 4))) == 1


def test_an_output_that_is_taken_twice_is_one_tensor():
    graph = make_fx(lambda x: x.max(dim=1).values + 1)(torch.randn(3, 4))
    (taken,) = [node for node in graph.graph.nodes if "getitem" in str(node.target) and node.args[1] == 0]
    (added,) = taken.users
    with graph.graph.inserting_after(added):
        again = graph.graph.node_copy(taken)
    with graph.graph.inserting_after(again):
        late = graph.graph.call_function(torch.ops.aten.mul.Tensor, (again, added))
    late.meta = dict(added.meta)
    next(iter(node for node in graph.graph.nodes if node.op == "output")).args = (late,)
    x = torch.randn(3, 4)
    reuse(graph)
    assert torch.equal(graph(x), (x.amax(1) + 1) * x.amax(1))
