"""Origins of integers: random programs move integers whose values tell where they came from."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lxt_compose.attribution.lookups import Following, FollowingMode
from lxt_compose.attribution.origins import UNKNOWN


class Listener:
    """Keeps what was looked up."""

    def __init__(self):
        self.found, self.was_lost, self.has_left = [], [], []

    def looked_up(self, values, origins, *, as_numbers):
        self.found.append((values, origins, as_numbers))
        return values

    def carries(self, x):
        return x.requires_grad

    def lost(self, func):
        self.was_lost.append(func)

    def left(self, func, *, content):
        self.has_left.append((func.__name__, content))


def inputs():
    """Two inputs whose values are all different; constants are negative."""
    return {"a": torch.arange(1, 13).reshape(3, 4) * 100, "b": torch.arange(1, 9).reshape(2, 4) * 1001}


def followed(program, given=None):
    """What a program makes, the origins of that, and who was told of what."""
    given = given or inputs()
    listener = Listener()
    following = Following(given, (), listener)
    with FollowingMode(following):
        made = program(*given.values())
    return made, following._origins.of(made), listener


def origins_by_value(made):
    """The oracle."""
    values = torch.cat([x.flatten() for x in inputs().values()]).tolist()
    places = {value: place for place, value in enumerate(values, 1)}
    return torch.tensor([places.get(value, 0) for value in made.flatten().tolist()]).reshape(made.shape)


def write(x, index, value):
    x[index] = value
    return x


def changed(x, change):
    change(x)
    return x


def step(x, draw):
    """A random operation that moves the elements of an integer matrix, or writes constants among them."""
    n, m = x.shape
    mask = torch.tensor([[draw.random() < 0.5 for _ in range(m)] for _ in range(n)])
    order = torch.tensor(draw.sample(range(m), m))
    row, constant = draw.randrange(n), -draw.randrange(1, 99)
    index = torch.tensor([[draw.randrange(m) for _ in range(m)] for _ in range(n)])
    buffer = torch.full((m, n), constant, dtype=draw.choice([torch.int64, torch.int32]))
    return draw.choice([
        lambda: x.roll(draw.randrange(-2, 3), 1),
        lambda: x.flip(0),
        lambda: x.t().contiguous(),
        lambda: x.t(),
        lambda: torch.cat([x, torch.full_like(x[:1], constant)]),
        lambda: torch.cat((x[:, 1:], x[:, :1]), dim=1),
        lambda: torch.stack([x, x.flip(1)]).flatten(0, 1)[:6],
        lambda: torch.vstack([x, x])[:5],
        lambda: x[:, order],
        lambda: x[row:],
        lambda: x[mask.any(1) | (torch.arange(n) == 0)],
        lambda: x.index_select(1, order),
        lambda: x.gather(1, index),
        lambda: torch.gather(input=x, dim=1, index=index),
        lambda: torch.take_along_dim(x, index, 1),
        lambda: x.take(index),
        lambda: torch.where(mask, x, constant),
        lambda: torch.where(mask, constant, x),
        lambda: x.where(mask, x.flip(1)),
        lambda: x.masked_fill(mask, constant),
        lambda: changed(x.clone(), lambda y: y.masked_fill_(mask, constant)),
        lambda: F.pad(x, (1, 0), value=constant),
        lambda: F.pad(x, (0, 1, 1, 0)),
        lambda: x.repeat(1, 2)[:, :5],
        lambda: torch.tile(x, (2, 1))[:5],
        lambda: x.repeat_interleave(2, 0)[1:5],
        lambda: x[:, None].expand(-1, 2, -1).reshape(-1, m)[:5],
        lambda: write(x.clone(), (slice(None), 0), constant),
        lambda: write(x.clone(), mask, constant),
        lambda: write(x.new_full(x.shape, constant), (slice(None), slice(1, None)), x[:, :-1].clone()),
        lambda: changed(buffer, lambda y: y.t().copy_(x)),
        lambda: changed(buffer, lambda y: y.view(-1)[: m * n].copy_(x.t().flatten())),
        lambda: changed(x.clone(), lambda y: y[row].zero_()),
        lambda: changed(x.clone(), lambda y: y.view(-1).fill_(constant)) if draw.random() < 0.2 else x,
        lambda: x.scatter(1, order.expand(n, m), x),
        lambda: x.new_full(x.shape, constant).scatter_(1, index, x),
        lambda: x.index_copy(1, order[:1], x[:, :1]),
        lambda: x.index_fill(1, order[:1], constant),
        lambda: torch.masked_scatter(x, mask, x.flip(1)),
        lambda: x.tril(),
        lambda: x.sort(1, descending=True).values,
        lambda: x.topk(m - 1 or 1, dim=1)[0],
        lambda: torch.stack(x.unbind(1), 1),
        lambda: torch.cat(x.split(2, 1), 1),
        lambda: x.to(torch.int32),
        lambda: x.long() + 0,
        lambda: x.clone().detach(),
        lambda: torch.stack([x[i] for i in range(n)]),
        lambda: torch.nn.utils.rnn.pad_sequence([x[0], x[-1, 1:]], batch_first=True, padding_value=constant),
        lambda: torch.slice_scatter(x, x[:1] * 1, 0, n - 1),
        lambda: torch.cartesian_prod(x[0], x[-1])[:6],
        lambda: torch.as_tensor(x),
    ])()  # fmt: skip


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_elements_that_are_moved_keep_their_origin(seed, steps):
    def program(a, b):
        draw, x = random.Random(seed), torch.cat([a, b])[:4]
        for _ in range(steps):
            x = step(x, draw)
            x = x if 0 < x.shape[1] <= 8 else x[:, :8]
        return x

    made, origins, listener = followed(program)
    assert torch.equal(origins, origins_by_value(made))
    assert not listener.was_lost


PLACES = torch.arange(1, 13).reshape(3, 4)
UNKNOWNS = torch.full((3, 4), UNKNOWN)
COMPUTED = {
    "a sum with a constant": (lambda a, b: a + 3, PLACES),
    "a constant tensor": (lambda a, b: torch.arange(4) * 7 - a, PLACES),
    "reversed": (lambda a, b: 2 - a, PLACES),
    "remainders": (lambda a, b: a % 7, PLACES),
    "floored": (lambda a, b: a // 7, PLACES),
    "clamped": (lambda a, b: a.clamp(max=300), PLACES),
    "bits": (lambda a, b: (a >> 2) & 7 | 1, PLACES),
    "with itself": (lambda a, b: a * a - a, PLACES),
    "in place": (lambda a, b: changed(a, lambda x: x.add_(3).mul_(2)), PLACES),
    "broadcast": (lambda a, b: a[:, :1] + torch.zeros(4, dtype=torch.long), PLACES[:, :1].expand(3, 4)),
    "buckets": (lambda a, b: torch.bucketize(a, torch.arange(0, 2000, 100)), PLACES),
    "times 0": (lambda a, b: a * 0, torch.zeros(3, 4, dtype=torch.long)),
    "times a mask": (lambda a, b: a * (a > 600), PLACES * (PLACES > 6)),
    "of two": (lambda a, b: a + b[:1], UNKNOWNS),
    "one of two": (lambda a, b: torch.where(a > 600, a, b[:1]), torch.where(PLACES > 6, PLACES, torch.arange(13, 17))),
    "neighbors": (lambda a, b: a + a.roll(1, 1), UNKNOWNS),
    "running sums": (lambda a, b: a.cumsum(1), UNKNOWNS),
    "in place with others": (lambda a, b: changed(a, lambda x: x.sub_(b[:1])), UNKNOWNS),
    "ones": (lambda a, b: torch.ones_like(a), torch.zeros(3, 4, dtype=torch.long)),
    "places of the largest": (lambda a, b: a.argsort(1), torch.zeros(3, 4, dtype=torch.long)),
    "a question": (lambda a, b: (a > 3).long(), torch.zeros(3, 4, dtype=torch.long)),
}


@pytest.mark.parametrize("what", COMPUTED)
def test_what_is_computed(what):
    program, want = COMPUTED[what]
    _, origins, _ = followed(program)
    assert torch.equal(origins, want)


def test_views_share_what_is_written_into_one_of_them():
    def program(a, b):
        buffer = torch.full((3, 4), -1)
        left, row = buffer[:, :2], buffer[1]
        left.copy_(a[:, 2:])
        row[3] = b[0, 0]
        return buffer

    made, origins, _ = followed(program)
    assert torch.equal(origins, origins_by_value(made))
    assert origins[1].tolist() == [7, 8, 0, 13]


def test_look_ups_are_told_with_their_origins():
    table = torch.randn(9000, 3)
    _, _, listener = followed(lambda a, b: (table[a], F.embedding(b, table), a.float(), a)[-1])
    (rows, first, number), (_, second, _), (numbers, third, is_number) = listener.found
    assert torch.equal(rows, table[inputs()["a"]])
    assert torch.equal(first, PLACES)
    assert torch.equal(second, torch.arange(13, 21).reshape(2, 4))
    assert torch.equal(third, PLACES)
    assert torch.equal(numbers, inputs()["a"].float())
    assert (number, is_number) == (False, True)


def test_numbers_of_python_are_told():
    _, _, listener = followed(lambda a, b: (a.tolist(), int(b[0, 0]), a)[-1])
    assert listener.has_left == [("tolist", True), ("__int__", True)]


def test_the_largest_of_several_and_where_it_was():
    _, _, listener = followed(lambda a, b: (a.max().item(), int(a.amax(1)[0]), int(a.max(1).indices[0]), a)[-1])
    assert listener.has_left == [("item", False), ("__int__", False)]  # where it was is a constant
    _, origins, _ = followed(lambda a, b: a.max(1).values)
    assert (origins < 0).all()
    _, origins, _ = followed(lambda a, b: torch.max(a, torch.zeros_like(a)))
    assert torch.equal(origins, PLACES)
