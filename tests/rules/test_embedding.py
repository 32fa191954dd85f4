"""Embeddings and embedding bags of rows that carry relevance."""

import oracles
import pytest
import torch
from support import Fn, assert_close
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Gamma


def test_embedding_bag_shares_by_contribution_to_its_sum():
    """Integers carry nothing; weights per sample do, in proportion to what they bring in."""
    torch.manual_seed(7)
    bag = nn.EmbeddingBag(6, 3, mode="sum").double()
    ids = torch.tensor([[0, 1, 2], [3, 4, 5]])
    weights = torch.rand(2, 3, dtype=torch.float64).requires_grad_()
    if torch.__version__ < (2, 6):
        pytest.skip("before torch 2.6, a bag of a table that is frozen has no gradient for weights per sample")
    with Composite().register(bag) as registration:
        z = bag(ids, per_sample_weights=weights)
        z.backward(z.detach())
    wanted = (bag.weight.detach()[ids] * weights.detach()[..., None]).sum(-1)
    assert_close(weights.grad, wanted, 1e-5)
    assert registration.report().complete
    weights.grad = None
    with Gamma().register(bag):
        bag(ids, per_sample_weights=weights).backward(z.detach())
    for i in range(2):
        dense = oracles.Dense(Fn(lambda _, w, i=i: bag(ids[i : i + 1], per_sample_weights=w)), (1, 3))
        wanted = dense.relevance(oracles.gamma(0.25), weights.detach()[i : i + 1], z.detach()[i : i + 1])
        assert_close(weights.grad[i : i + 1], wanted, 1e-9)


def test_embedding_moves_relevance_to_the_rows_that_were_looked_up():
    """Ids carry nothing, and a table that does (one that is computed) gets back what was taken from it."""
    ids, table = torch.tensor([[0, 2, 2]]), torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    with Composite().register(model := Fn(lambda _, table: F.embedding(ids, table))) as registration:
        z = model(table)
        z.backward(z.detach())
    assert_close(table.grad, table.detach() * torch.tensor([1.0, 0.0, 2.0, 0.0]).double()[:, None])
    assert registration.report().complete


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_embedding_with_a_gradient_for_training(option):
    ids, table = torch.tensor([[2, 0, 2]]), torch.randn(4, 3).double().requires_grad_()
    model = Fn(lambda _, table: F.embedding(ids, table, **{option: True}))
    with Composite().register(model):
        z = model(table)
        z.backward(z.detach())
    assert_close(table.grad, table.detach() * torch.tensor([1.0, 0.0, 2.0, 0.0]).double()[:, None])
