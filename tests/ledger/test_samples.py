"""Which sample is where: layouts that are read off strides and sizes are those that the samples' codes tell."""

import random

import pytest
import torch

from lxt_compose.ledger import samples
from lxt_compose.ledger.layouts import NOBODY, Layout, in_front
from lxt_compose.ledger.samples import layouts_after
from lxt_compose.ops import op_of

SAMPLES = 4
VIEWS = {
    "transpose": (torch.Tensor.transpose, lambda x, r: (r.randrange(x.dim()), r.randrange(x.dim()))),
    "permute": (torch.permute, lambda x, r: (r.sample(range(x.dim()), x.dim()),)),
    "flatten": (torch.flatten, lambda x, r: tuple(sorted(r.choices(range(x.dim()), k=2)))),
    "reshape": (torch.reshape, lambda x, r: (r.choice([(-1,), (x.shape[0], -1), (-1, x.shape[-1]), (2, -1, 2)]),)),
    "unsqueeze": (torch.unsqueeze, lambda x, r: (r.randrange(x.dim() + 1),)),
    "expand": (torch.Tensor.expand, lambda x, r: (2, *x.shape)),
    "slice": (torch.Tensor.__getitem__, lambda x, r: (tuple(slice(0, r.choice([None, 2])) for _ in x.shape),)),
    "step": (torch.Tensor.__getitem__, lambda x, r: (tuple(slice(r.randrange(2), None, 2) for _ in x.shape),)),
    "diagonal": (torch.diagonal, lambda x, r: (0, 0, x.dim() - 1)),
    "contiguous": (torch.Tensor.contiguous, lambda x, r: ()),
    "flip": (torch.flip, lambda x, r: ((r.randrange(x.dim()),),)),
    "cat": (lambda x, dim: torch.cat([x, x], dim), lambda x, r: (r.randrange(x.dim()),)),
}


def told(x, layout):
    """The sample of each element of x, by its layout."""
    shape = [-1 if dim == layout.dim else 1 for dim in range(x.dim())]
    return layout.owner.reshape(shape).expand(x.shape)


@pytest.mark.parametrize("seed", range(40))
def test_a_chain_of_views_knows_whose_each_element_is(seed):
    """Elements carry their sample as their value: what a layout says can be read off them."""
    r = random.Random(seed)
    x = torch.arange(float(SAMPLES)).reshape(-1, 1, 1).expand(SAMPLES, 4, 4).clone()
    layout, known = in_front(SAMPLES), 0
    for _ in range(12):
        function, arguments = VIEWS[r.choice(list(VIEWS))]
        if not 2 <= x.dim() <= 4 or not 8 <= x.numel() <= 512:
            break
        args = (x, *arguments(x, r))
        try:
            z = function(*args)
        except RuntimeError:  # these sizes do not fit
            continue
        if function is VIEWS["cat"][0]:
            function, args = torch.cat, ([x, x], args[1])
        (after,) = layouts_after(op_of(function), function, args, {}, [(x, layout)], [z], SAMPLES)
        if after is None:
            continue
        assert torch.equal(told(z, after).float(), z)
        assert after.plain == torch.equal(after.owner, torch.arange(SAMPLES))
        x, layout, known = z, after, known + 1
    assert known


def test_what_is_nobodys_takes_the_sample_around_it():
    x = torch.zeros(8, 3)
    layout = Layout(0, torch.tensor([0, NOBODY, 1, 1, NOBODY, 2, 3, 3]))
    (after,) = layouts_after(
        op_of(torch.reshape), torch.reshape, (x, (4, 2, 3)), {}, [(x, layout)], [x.view(4, 2, 3)], 4
    )
    assert after.dim == 0
    assert after.plain


FREE = {
    "transpose": (torch.transpose, (0, 1)),
    "merged with heads": (torch.reshape, ((32, 6),)),
    "rows of all": (torch.flatten, (0, 1)),
    "a part of each": (torch.Tensor.__getitem__, ((slice(None), slice(2, 4)),)),
    "joined": (torch.cat, (1,)),
}


@pytest.mark.parametrize("name", FREE)
def test_nothing_runs_again_for_what_sizes_tell(name, monkeypatch):
    monkeypatch.setattr(samples, "by_codes", lambda *_, **options: pytest.fail("it ran on codes"))
    x, (function, rest) = torch.randn(SAMPLES, 8, 6), FREE[name]
    args = ([x, x] if function is torch.cat else x, *rest)
    known = [(x, in_front(SAMPLES))] * (1 + (function is torch.cat))
    assert layouts_after(op_of(function), function, args, {}, known, [function(*args)], SAMPLES) != [None]


def test_a_view_across_the_samples_is_not_told():
    """It has the step and the size of the samples' dimension, but each of its rows ends in the next sample."""
    x = torch.randn(32)[:16].view(SAMPLES, 4)
    args = (x, (SAMPLES, 2), (4, 1), 3)
    known, outputs = [(x, in_front(SAMPLES))], [torch.as_strided(*args)]
    assert layouts_after(op_of(torch.as_strided), torch.as_strided, args, {}, known, outputs, SAMPLES) == [None]


@pytest.mark.parametrize(
    ("function", "shape", "stays"),
    [
        (torch.cov, (SAMPLES, 5), False),
        (torch.pdist, (SAMPLES, 5), False),
        (torch.linalg.matrix_power, (SAMPLES, SAMPLES), False),
        (torch.linalg.matrix_power, (SAMPLES, 3, 3), True),
    ],
)
def test_rows_that_are_combined_belong_to_no_sample(function, shape, stays):
    x = torch.rand(shape)
    args = (x, 2) if function is torch.linalg.matrix_power else (x,)
    (after,) = layouts_after(op_of(function), function, args, {}, [(x, in_front(SAMPLES))], [function(*args)], SAMPLES)
    assert (after is not None) == stays


def test_distances_to_constants_belong_to_the_sample():
    x, c = torch.rand(SAMPLES, 3), torch.rand(SAMPLES, 3)
    front = in_front(SAMPLES)
    for args, known, stays in (
        ((x, c), [(x, front)], True),
        ((c, x), [(x, front)], False),  # its samples are in the last dimension
        ((x, x), [(x, front), (x, front)], False),
        ((x[:, None], x[:, None]), None, True),
    ):
        known = known or [(args[0], front), (args[1], front)]
        (after,) = layouts_after(op_of(torch.cdist), torch.cdist, args, {}, known, [torch.cdist(*args)], SAMPLES)
        assert (after is not None) == stays
        assert after is None or after.dim == 0


@pytest.mark.parametrize("way", ["sum", "mean", "amax", "prod"])
def test_what_is_reduced_into_belongs_to_those_that_it_is_made_of(way):
    x, into, index = torch.rand(SAMPLES, 3, 2), torch.ones(SAMPLES, 2, 2), torch.tensor([0, 1, 0])
    index = index[None, :, None].expand(SAMPLES, 3, 2)
    function, args = torch.scatter_reduce, (into, 1, index, x, way)
    (after,) = layouts_after(op_of(function), function, args, {}, [(x, in_front(SAMPLES))], [function(*args)], SAMPLES)
    assert after.same(in_front(SAMPLES))
    across = (torch.ones(2, 3, 2), 0, torch.tensor([0, 1, 0, 1])[:, None, None].expand(SAMPLES, 3, 2), x, way)
    z = function(*across)
    assert layouts_after(op_of(function), function, across, {}, [(x, in_front(SAMPLES))], [z], SAMPLES) == [None]


def test_what_is_made_of_one_sample_alone_is_of_that_sample():
    """A model that goes through its samples in a loop, each cut to its length."""
    x, front = torch.rand(SAMPLES, 5, 3), in_front(SAMPLES)

    def after(function, x, layout, *args):
        return layouts_after(op_of(function), function, (x, *args), {}, [(x, layout)], [function(x, *args)], SAMPLES)[0]

    row = after(torch.Tensor.__getitem__, x, front, (2, slice(0, 4)))
    assert row.owner.tolist() == [2] * 4
    spread = after(torch.std, x[2, :4], row, 0)
    assert (spread.dim, spread.owner.tolist()) == (0, [2] * 3)
    assert after(torch.std, x[2, :4], row) is None  # a number
    assert after(torch.std, x, front, 0) is None
    rows = [torch.std(x[i, : i + 2], 0) for i in range(SAMPLES)]
    known = [(row, Layout(0, torch.full((3,), i))) for i, row in enumerate(rows)]
    (both,) = layouts_after(op_of(torch.stack), torch.stack, (rows,), {}, known, [torch.stack(rows)], SAMPLES)
    assert both.same(front)


def test_what_one_sample_is_written_into_is_not_all_of_that_sample():
    row, into = torch.rand(3), torch.zeros(SAMPLES, 3)
    args = (into, 0, torch.tensor([2]), row[None])
    known = [(args[3], Layout(0, torch.tensor([2])))]
    (after,) = layouts_after(op_of(torch.index_copy), torch.index_copy, args, {}, known, [torch.index_copy(*args)], 4)
    assert after.owner.tolist() == [NOBODY, NOBODY, 2, NOBODY]
