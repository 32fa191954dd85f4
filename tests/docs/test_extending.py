"""The how-tos for what users write themselves run as they stand, and are short."""

import re
from pathlib import Path

import pytest
import torch
from support import twice
from torch import nn

from lxt_compose import Composite, Epsilon, Family, Rule, register_container, register_operation
from lxt_compose.autograd.trees import map_tensors, tensors_in

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "extending.md"
SECTIONS = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.M)[1:]
ALL = [
    (text.split("\n", 1)[0], block)
    for text in SECTIONS
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
]
BLOCKS = dict(reversed(ALL))
FORMULATIONS = ("relevance", "gradient")


@pytest.mark.parametrize(("heading", "block"), ALL)
def test_every_block_runs_and_is_short(heading, block):
    assert sum(bool(line.strip()) for line in block.splitlines()) <= 20
    exec(compile(block, f"{PAGE.name}: {heading}", "exec"), {"__name__": "extending"})


def test_there_are_four_how_tos():
    assert list(dict(ALL)) == ["A rule", "An operation of a family", "A canonizer", "A container of outputs"]


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_rule_of_the_page_has_its_relevance_and_its_books(formulation):
    names = {}
    exec(BLOCKS["A rule"], names)
    model = nn.Bilinear(3, 3, 2, bias=False).double()
    a, b = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rule = names["FirstTakesAll"](0.0)
    with Composite({nn.Bilinear: rule}, formulation=formulation).register(model) as registration:
        with registration.ledger() as ledger:
            y = model(a, b)
            y.backward(y.detach() if formulation == "relevance" else torch.ones_like(y))
        row = registration.report().rows[0]
    relevance = a.grad if formulation == "relevance" else a * a.grad
    torch.testing.assert_close(relevance.sum(1), y.detach().sum(1))
    assert b.grad is None or not b.grad.any()
    assert ledger.unaccounted < 1e-9
    assert "FirstTakesAll" in row.rule


def test_an_operation_of_torch_cannot_be_registered_anew():
    with pytest.raises(ValueError, match=r"torch.add is an operation of torch, whose family is known"):
        register_operation(torch.add, Family.PRODUCT)
    with pytest.raises(TypeError, match=r"register_operation\(\) takes a function and a Family, such as Family.LINEAR"):
        register_operation(3, Family.PRODUCT)


def test_a_registered_container_is_taken_apart_and_made_anew():
    class Pair:
        def __init__(self, left, right):
            self.left, self.right = left, right

    class Child(Pair):
        pass

    register_container(Pair, lambda pair: (pair.left, pair.right), lambda old, new: type(old)(*new))
    pair = Child(torch.ones(1), [torch.zeros(2)])
    assert [tuple(t.shape) for t in tensors_in(pair)] == [(1,), (2,)]
    assert map_tensors(lambda t: t, pair) is pair
    doubled = map_tensors(lambda t: t + 1, pair)
    assert type(doubled) is Child
    assert doubled.left.item() == 2
    assert doubled.right[0].tolist() == [1, 1]
    with pytest.raises(TypeError, match="takes a class"):
        register_container(3, vars)


def test_a_container_that_refuses_setattr_is_made_anew_from_its_attributes():
    class Frozen:
        def __init__(self, logits):
            object.__setattr__(self, "logits", logits)

        def __setattr__(self, name, value):
            raise AttributeError(name)

    register_container(Frozen, vars)
    assert map_tensors(lambda t: t + 1, Frozen(torch.zeros(1))).logits.item() == 1


def test_a_container_that_cannot_be_made_anew_is_an_error():
    class Items:
        inside = (torch.zeros(1),)

    register_container(Items, lambda items: items.inside)
    with pytest.raises(
        TypeError, match=r"flatten gave a tuple, of which no new Items .* give unflatten\(old, inside\)"
    ):
        map_tensors(lambda t: t + 1, Items())


def test_a_rule_without_its_methods_says_which():
    class Nothing(Rule):
        pass

    class Enters(Nothing):
        def enter(self, call, place):
            return call.carriers[place].detach()

    x = torch.ones(1, 2, requires_grad=True)
    for kind, method in ((Nothing, "enter"), (Enters, "leave")):
        message = rf"{kind.__name__} needs a method {method}\(call, "
        composite = Composite({nn.Linear: kind()})
        with composite.register(nn.Linear(2, 2)) as registration, pytest.raises(NotImplementedError, match=message):
            registration.model(x)


def test_a_registered_operation_is_a_key_and_has_the_familys_default():
    names = {}
    exec(BLOCKS["An operation of a family"].replace("readme::", "readme2::"), names)
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    with Composite({names["double"]: Epsilon(0.5)}).register(names["Doubled"]()) as registration:
        y = registration.model(x)
        y.backward(y.detach())
        (row,) = registration.report().rows
    assert row.rule == "Epsilon(epsilon=0.5)"
    torch.testing.assert_close(x.grad, x.detach() * 2 * y.detach() / (y.detach() + 0.5 * y.detach().sign()))


def test_a_second_registration_of_a_function_replaces_the_first():
    Twice = twice()

    class Net(nn.Module):
        def forward(self, x):
            return Twice.apply(x)

    def rules_of(family):
        register_operation(Twice, family)
        with Composite().register(Net()) as registration:
            registration.model(torch.ones(2, requires_grad=True))
            return [row.rule for row in registration.report().rows]

    assert rules_of(Family.LINEAR) == ["Epsilon(epsilon=1e-06)"]
    with pytest.warns(UserWarning, match=r"that is Twice\.apply in \(model\); .* give it a rule: {Twice: Epsilon\(\)}"):
        assert rules_of(Family.STATISTIC) == ["Stop()"]
