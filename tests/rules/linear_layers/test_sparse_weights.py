"""Products with a constant matrix that is sparse: the same relevance as with the dense one, under every rule."""

import pytest
import torch
from support import Fn, assert_close, both_formulations
from torch import nn

from lxt_compose import AlphaBeta, Composite, Epsilon, Flat, Gamma, WSquare, ZPlus
from lxt_compose.rules.linear_layers.weight_parts import absolute, of_sparse, ones

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DENSE = draw(5, 4).where(draw(5, 4, seed=3) > -0.3, torch.zeros(()).double())
DENSE[2] = 0  # a node without neighbors
COO, CSR, BIAS = DENSE.to_sparse(), DENSE.to_sparse_csr(), draw(5, 3, seed=1)
DEGREES = (DENSE != 0).sum(1, keepdim=True).clamp(min=1)
PRODUCTS = {
    "matmul": (lambda x: COO @ x, lambda x: DENSE @ x),
    "matmul, csr": (lambda x: CSR @ x, lambda x: DENSE @ x),
    "sparse.mm": (lambda x: torch.sparse.mm(COO, x), lambda x: DENSE @ x),
    "spmm": (lambda x: torch.spmm(CSR, x), lambda x: DENSE @ x),
    "mv": (lambda x: COO.mv(x[:, 0]), lambda x: DENSE.mv(x[:, 0])),
    "mean": (lambda x: torch.sparse.mm(CSR, x, "mean"), lambda x: (DENSE / DEGREES) @ x),
    "on the right": (lambda x: x.T @ DENSE.T.to_sparse_csr(), lambda x: x.T @ DENSE.T),
    "addmm": (lambda x: torch.addmm(BIAS, COO, x), lambda x: torch.addmm(BIAS, DENSE, x)),
    "sparse.addmm": (lambda x: torch.sparse.addmm(BIAS, COO, x), lambda x: torch.addmm(BIAS, DENSE, x)),
}
RULES = [None, Epsilon(), Gamma(0.25), ZPlus(), AlphaBeta(2, 1), WSquare(), Flat()]


def explained(function, rule, formulation):
    """The slots of the input, and the report."""
    model = nn.Sequential(Fn(lambda self, x: function(x)))
    rules = {} if rule is None else {Fn: rule}
    x = draw(4, 3, seed=2).requires_grad_()
    with Composite(rules, formulation=formulation).register(model) as registration:
        y = registration.model(x)
        y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
    assert torch.equal(y, function(x))
    return x.grad, registration.report()


@both_formulations
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_sparse_matrix_is_the_dense_one(name, rule, formulation):
    if "addmm" in name and rule is not None and not isinstance(rule, Epsilon):
        rule = None  # split rules know addmm with the input on the left
    if rule is not None and formulation not in rule.formulations:
        formulation = "relevance"
    sparse, dense = PRODUCTS[name]
    found, report = explained(sparse, rule, formulation)
    assert report.complete
    assert_close(found, explained(dense, rule, formulation)[0], 1e-5)


@both_formulations
def test_the_largest_of_the_neighbors_gets_all(formulation):
    found, report = explained(lambda x: torch.sparse.mm(CSR, x, "amax"), None, formulation)
    assert report.complete
    x, expected = draw(4, 3, seed=2), torch.zeros(4, 3, dtype=torch.float64)
    for i, column in ((i, column) for i in range(5) for column in range(3)):
        neighbors = DENSE[i].nonzero().flatten()
        if len(neighbors):
            best = neighbors[(DENSE[i] * x[:, column])[neighbors].argmax()]
            expected[best, column] += DENSE[i, best] * (x[best, column] if formulation == "relevance" else 1)
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr])
def test_parts_of_a_sparse_weight_are_sparse(layout):
    matrix = draw(4, 6).relu()
    blocks = {"blocksize": (2, 2)} if layout is torch.sparse_bsr else {}
    sparse = matrix.to_sparse(layout=layout, **blocks)
    part = of_sparse(sparse, absolute)
    assert part.layout is layout
    assert torch.equal(part.to_dense(), matrix.abs())
    assert torch.equal(of_sparse(sparse, ones), torch.ones(4, 6, dtype=torch.float64))


def test_a_result_that_is_sparse_is_named():
    graph = COO.coalesce()
    model = Fn(lambda self, x: (graph * x).to_dense())
    x = draw(5, 4).requires_grad_()
    with Composite().register(model) as registration:
        y = registration.model(x)
        y.sum().backward()
    assert [(row.target, row.note) for row in registration.report().uncovered] == [("mul", "on sparse tensors")]
    assert_close(x.grad.to_dense(), DENSE)
