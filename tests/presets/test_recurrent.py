"""The preset for recurrent nets: against the equations of LRP-all with gamma, written out slowly."""

import pytest
import torch
from torch import nn

from lxt_compose import attribute, presets

SAMPLES, LENGTH, FEATURES, HIDDEN, GAMMA = 2, 4, 3, 5, 0.03


def gamma_share(w, b, x, r):
    """``sum_k (c_jk + gamma c_jk^s) / (z_k + gamma z_k^s) r_k`` with the sign s of z_k; term by term."""
    found = torch.zeros_like(x)
    for k in range(len(w)):
        terms, z = w[k] * x, w[k] @ x + b[k]
        sign = 1.0 if z >= 0 else -1.0
        same = terms * (terms * sign > 0)
        whole = z + GAMMA * (same.sum() + (b[k] if b[k] * sign > 0 else 0.0))
        found += (terms + GAMMA * same) / whole * r[k]
    return found


def of_lstm(lstm, head, x, target):
    """The relevance of one sequence [length, features]: gates get nothing, the signal all, tanh passes it on."""
    w, b = torch.cat([lstm.weight_ih_l0, lstm.weight_hh_l0], 1), lstm.bias_ih_l0 + lstm.bias_hh_l0
    h = c = x.new_zeros(HIDDEN)
    steps = []
    for row in x:
        both = torch.cat([row, h])
        gate, forget, signal, out = (w @ both + b).chunk(4)
        kept, new = forget.sigmoid() * c, gate.sigmoid() * signal.tanh()
        c = kept + new
        h = out.sigmoid() * c.tanh()
        steps.append((both, kept, new, c))
    r_h = gamma_share(
        head.weight[target : target + 1],
        head.bias[target : target + 1],
        h,
        (head.weight @ h + head.bias)[target : target + 1],
    )
    r_c = torch.zeros_like(r_h)
    found = torch.zeros_like(x)
    for place in reversed(range(len(x))):
        both, kept, new, c = steps[place]
        r_c = r_c + r_h
        r_new = new / c * r_c
        r_c = kept / c * r_c
        down = gamma_share(w[2 * HIDDEN : 3 * HIDDEN], b[2 * HIDDEN : 3 * HIDDEN], both, r_new)
        found[place], r_h = down[:FEATURES], down[FEATURES:]
    return found


class Net(nn.Module):
    def __init__(self, cell=None):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head, self.cell = nn.LSTM(FEATURES, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 2), cell

    def forward(self, x):
        states = self.rnn(x)[0] if self.cell is None else self.cell(self.rnn, x)
        return self.head(states[:, -1])


def by_hand(lstm, x):
    """The same LSTM, written as most people do who write their own: one layer of input and state."""
    w, b = torch.cat([lstm.weight_ih_l0, lstm.weight_hh_l0], 1), lstm.bias_ih_l0 + lstm.bias_hh_l0
    h = c = x.new_zeros(len(x), HIDDEN)
    states = []
    for row in x.unbind(1):
        i, f, g, o = nn.functional.linear(torch.cat([row, h], 1), w, b).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    return torch.stack(states, 1)


def sequences():
    return torch.randn(SAMPLES, LENGTH, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("formulation", ["gradient", "relevance"])
@pytest.mark.parametrize("cell", [None, by_hand], ids=["nn.LSTM", "by hand"])
def test_against_the_equations(cell, formulation):
    model, x = Net(cell).double().eval(), sequences()
    result = attribute(model, x, target=1, composite=presets.gamma_rnn(formulation=formulation))
    assert result.report.complete
    expected = torch.stack([of_lstm(model.rnn, model.head, row, 1) for row in x]).detach()
    torch.testing.assert_close(result.relevance, expected, rtol=1e-4, atol=5e-6)  # gamma has a stabilizer


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_gamma_reaches_the_layers_inside_of_other_nets(kind):
    model = Net().double().eval()
    model.rnn = kind(FEATURES, HIDDEN, batch_first=True).double()
    found = [
        attribute(model, sequences(), target=1, composite=presets.gamma_rnn(g)).relevance for g in (0.0, 0.03, 1.0)
    ]
    plain = attribute(model, sequences(), target=1).relevance
    torch.testing.assert_close(found[0], plain, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[1], plain, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[2], found[1], rtol=1e-3, atol=1e-3)


def test_it_is_a_preset_by_name():
    assert "gamma_rnn" in presets.available()
    assert presets.RECURRENT == ("gamma_rnn",)
    assert repr(presets.get("gamma_rnn")) == repr(presets.gamma_vit(0.25, 0.03))
    with pytest.raises(ValueError, match="gamma must be"):
        presets.gamma_rnn(-0.1)
