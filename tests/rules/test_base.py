"""What all rules share: the carriers of a call, what is put in their places, errors of incomplete rules."""

import pytest
import torch

from lxt_compose import RuleError, Stop
from lxt_compose.rules.base import OpCall, Rule, exchange, find_carriers, only_output


def call_of(*args, **kwargs):
    call = OpCall(formulation="relevance", label="here", args=args, kwargs=kwargs)
    call.take(find_carriers(args, kwargs))
    return call


def test_carriers_are_found_in_order_and_others_are_put_in_their_places():
    a, b, c = (torch.full((2,), float(i), requires_grad=True) for i in range(3))
    constant = torch.ones(2)
    call = call_of(constant, [a, (b, constant)], 3, name={"deep": c})
    assert [id(x) for x in call.carriers] == [id(x) for x in (a, b, c)]
    call.inputs = [x.detach() for x in call.carriers]
    args, kwargs = exchange(call)
    assert args[0] is constant
    assert args[1][0] is call.inputs[0]
    assert args[1][1][0] is call.inputs[1]
    assert args[1][1][1] is constant
    assert args[2] == 3
    assert kwargs["name"]["deep"] is call.inputs[2]


def test_rules_for_one_input_and_one_output_tell_of_more():
    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    assert call_of(x).only_carrier(Stop()) == 0
    with pytest.raises(RuleError, match=r"Stop\(\) passes relevance to one input, but here got 2 inputs"):
        call_of(x, y).only_carrier(Stop())
    assert only_output(Stop(), call_of(x), [y]) is y
    with pytest.raises(RuleError, match=r"operations with one output, but here has 2"):
        only_output(Stop(), call_of(x), [x, y])


def test_a_rule_without_methods_says_which_it_needs():
    call = call_of(torch.ones(2, requires_grad=True))
    with pytest.raises(NotImplementedError, match=r"needs a method enter\(call, place\)"):
        Rule().enter(call, 0)
    with pytest.raises(NotImplementedError, match=r"needs a method leave\(call, outputs\)"):
        Rule().leave(call, [])
