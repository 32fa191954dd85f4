"""The form of a call: what is known by it, and how much of that is kept."""

import torch
from torch import nn

from lxt_compose import Composite
from lxt_compose.runtime import call_stack
from lxt_compose.runtime.forms import CARRIER, read

X = torch.arange(6.0).reshape(2, 3)


def test_the_form_holds_numbers_and_names_in_their_places_but_no_carriers():
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    carriers, form = read((x, 2, y), {"approximate": "tanh", "out": None})
    assert carriers[0] is x
    assert carriers[1] is y
    assert form == (3, "approximate", "out", CARRIER, 2, CARRIER, "tanh", None)


def test_a_call_with_a_constant_tensor_or_a_container_has_no_form():
    x = X.clone().requires_grad_()
    assert read((x, X), {})[1] is None
    carriers, form = read(([x, X], 0), {})
    assert carriers[0] is x
    assert form is None


class Power(nn.Module):
    """``x ** p`` with another p in each pass."""

    p = 1.0

    def forward(self, x):
        """Raise x."""
        self.p += 0.5
        return x**self.p


def test_numbers_that_are_others_in_each_pass_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(call_stack, "_LARGEST_CACHE", 4)
    model = nn.Sequential(Power())
    with Composite(formulation="gradient").register(model) as registration:
        for _ in range(12):
            x = X.clone().requires_grad_()
            model(x).sum().backward()
            relevance = (x * x.grad).detach()
    kept = [len(site.context.decisions) for site in registration.session.sites]
    assert 0 < max(kept) <= 4
    assert torch.allclose(relevance, X ** model[0].p)


class Idle(nn.Module):
    """Copies that copy nothing, beside one that does."""

    def forward(self, x):
        """Return x in its own dtype, and once more as double."""
        same = nn.functional.dropout(x.to(x.dtype).contiguous(), 0.5, training=False)
        return torch.sigmoid(same) * same, same.double()


def test_what_hands_on_its_very_carrier_is_counted_and_changes_nothing():
    model = nn.Sequential(Idle())
    with Composite(formulation="gradient").register(model) as registration:
        for _ in range(2):
            x = X.clone().requires_grad_()
            made, wide = model(x * 1)
            made.sum().backward()
        report = str(registration.report())
    assert wide.dtype is torch.float64
    assert torch.allclose(x.grad, torch.sigmoid(X))
    for name in ("to", "contiguous", "dropout"):
        assert name in report
