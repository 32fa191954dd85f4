"""Rules for gates: all to the signal, none to the gate; factors that are no gates share."""

import pytest
import torch
from support import FORMULATIONS, assert_close
from torch.nn import functional as F
from under_rules import both, carrier, relevance, tensor

from lxt_compose import Epsilon, Uniform, UniformEpsilon
from lxt_compose.rules.gated import Gated, GatedEpsilon, SignalTakesAll, gated_form

GATES = {
    "all activations": (SignalTakesAll(0.0), F.silu),
    "all activations, a sigmoid": (SignalTakesAll(0.0), torch.sigmoid),
    "sigmoids alone": (Gated(), torch.sigmoid),
}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", GATES)
def test_the_signal_takes_all(name, formulation):
    rule, gate = GATES[name]
    x, y, r = carrier(3, 4), carrier(3, 4, seed=1), tensor(3, 4, seed=2)
    of_gate, of_signal = relevance(lambda x, y: gate(x) * y, [x, y], {torch.mul: rule}, r, formulation)
    assert_close(of_signal, r)
    assert of_gate is None


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_gate_in_a_contraction_gets_none_and_the_values_follow_the_epsilon_rule(formulation):
    s, v, r = carrier(3, 4), carrier(4, 2), tensor(3, 2, seed=2)
    rules = {torch.matmul: GatedEpsilon(0.0)}
    of_gate, of_value = relevance(lambda s, v: torch.sigmoid(s) @ v, [s, v], rules, r, formulation)
    gate, value = torch.sigmoid(s.detach()), v.detach()
    wanted = torch.zeros_like(value)
    for i in range(3):
        for j in range(2):
            total = sum(gate[i, k] * value[k, j] for k in range(4))
            for k in range(4):
                wanted[k, j] += gate[i, k] * value[k, j] / total * r[i, j]
    assert_close(of_value, wanted)
    assert of_gate is None


@pytest.mark.parametrize("rule", [SignalTakesAll(0.0), Gated()], ids=str)
def test_two_signals_share_evenly(rule):
    x, y, r = carrier(3, 4), carrier(3, 4, seed=1), tensor(3, 4, seed=2)
    for found in both(torch.mul, [x, y], {torch.mul: rule}, r):
        assert_close(found, r / 2)


def test_the_gated_form_of_a_default():
    assert gated_form(Uniform()) == Gated()
    assert gated_form(UniformEpsilon(0.5)) == GatedEpsilon(0.5)
    assert gated_form(Epsilon()) is gated_form(None) is None
