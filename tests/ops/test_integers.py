"""What operations do with integers is known under all their names."""

import operator

import pytest
import torch
from torch.nn import functional as F

from lxt_compose.ops import Effect, integers_of

KNOWN = {
    Effect.MOVES: [torch.cat, torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.copy_, torch.roll,
                   torch.Tensor.masked_fill_, torch.where, F.pad, torch.Tensor.zero_, torch.Tensor.T.__get__],
    Effect.AT_PLACE: [torch.add, torch.Tensor.__radd__, operator.add, torch.Tensor.add_, torch.Tensor.__and__,
                      torch.Tensor.__rshift__, torch.bitwise_and, torch.remainder, torch.clamp],
    Effect.ROUNDS: [torch.floor, torch.Tensor.round_, torch.floor_divide],
    Effect.CONVERTS: [torch.Tensor.long, torch.Tensor.int, torch.Tensor.to, torch.Tensor.float, torch.clone],
    Effect.FORGETS: [torch.zeros_like, torch.Tensor.new_zeros, torch.argmax, torch.Tensor.__lt__, torch.nonzero],
    Effect.EQUALS: [torch.eq, torch.Tensor.eq, torch.Tensor.__eq__],
    Effect.LEAVES: [torch.Tensor.tolist, torch.Tensor.__int__, torch.Tensor.item],
    Effect.CHOOSES: [torch.Tensor.max, torch.amin, torch.median],
    Effect.SORTS: [torch.sort, torch.Tensor.topk],
    Effect.LOOKS_UP: [F.embedding, torch.embedding],
    Effect.BAGS: [F.embedding_bag],
    Effect.ONE_HOT: [F.one_hot],
    Effect.COMBINES: [torch.Tensor.scatter_add_, torch.index_add],
}  # fmt: skip


@pytest.mark.parametrize(("effect", "func"), [(effect, func) for effect, funcs in KNOWN.items() for func in funcs])
def test_names(effect, func):
    assert integers_of(func).effect is effect


@pytest.mark.parametrize("func", [torch.cumsum, torch.sum, torch.bincount, torch.unique, len, max])
def test_what_cannot_be_said(func):
    assert integers_of(func) is None


def test_a_namesake_of_somebody_else_is_not_known():
    def roll(x, shifts):
        return x

    assert integers_of(roll) is None
