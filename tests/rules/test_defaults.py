"""The table of defaults: what it holds, which powers pass relevance, which tables are refused."""

import pytest
import torch

from lxt_compose import Epsilon, UniformEpsilon
from lxt_compose.ops import Family, op_of
from lxt_compose.rules.defaults import check_table, default_rule, default_rules, raises


@pytest.mark.parametrize(("formulation", "epsilon"), [("relevance", 1e-6), ("gradient", 0.0)])
def test_linear_operations_and_products_have_the_stabilizer_of_the_formulation(formulation, epsilon):
    table = default_rules(formulation)
    assert default_rule(op_of(torch.add), table) == Epsilon(epsilon)
    assert default_rule(op_of(torch.matmul), table, 2) == UniformEpsilon(epsilon)
    assert default_rules(formulation, 0.5)[Family.LINEAR] == Epsilon(0.5)
    assert Family.MOVEMENT not in table


@pytest.mark.parametrize(("base", "exponent", "passes"), [
    ("x", 2, True), ("x", 0.5, True), ("x", -1, False), ("x", 0, False), (2.0, "x", True), (-2.0, "x", False),
    ("x", torch.tensor([1.0, 2.0]), True), ("x", torch.tensor([1.0, -2.0]), False), ("x", "x", False),
])  # fmt: skip
def test_powers_that_pass_relevance(base, exponent, passes):
    x = torch.ones(2, requires_grad=True)
    args = tuple(x if isinstance(value, str) else value for value in (base, exponent))
    assert raises(op_of(torch.pow), args, {}) is passes


@pytest.mark.parametrize(("table", "message"), [
    ([Epsilon()], "defaults must be True, False or a mapping"), ({torch.add: Epsilon()}, "takes families such as"),
    ({Family.LINEAR: Epsilon}, "the default for .* must be a rule"),
])  # fmt: skip
def test_tables_that_are_none(table, message):
    with pytest.raises(TypeError, match=message):
        check_table(table)
