"""Inputs at the edge: given twice, oddly named, cut off by the model, or met by a model that is in train mode."""

import pytest
import torch
from torch import nn

from lxt_compose import AttributionError, Composite, Epsilon, RegistrationError, attribute


class Cut(nn.Module):
    """A layer behind a detached input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x.detach())


class Renamed(nn.Module):
    """A layer whose input's name contains the names of constants."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, wavelength):
        return self.layer(wavelength)


class Powers(nn.Module):
    """Two to the power of a layer: by default what only a power leads to is a statistic."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x):
        return 2 ** self.layer(x)


def test_a_tensor_given_twice_is_two_inputs():
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True, bias=False).eval(), torch.randn(1, 4, 8)

    def total(output):
        return output[0].sum((1, 2))

    same = attribute(attention, (x, x, x), target=total).relevances
    copies = attribute(attention, (x, x.clone(), x.clone()), target=total).relevances
    assert list(same) == list(copies) == ["query", "key", "value"]
    for name in same:
        torch.testing.assert_close(same[name], copies[name])
        assert same[name].abs().max() > 0


def test_a_model_that_cuts_its_input_off_is_told():
    with pytest.raises(AttributionError, match=r"no output of Cut depends on its inputs.*detach"):
        attribute(Cut().eval(), torch.randn(2, 8))


def test_names_that_contain_the_names_of_constants_are_inputs():
    x = torch.randn(2, 8)
    assert attribute(Renamed().eval(), {"wavelength": x}).relevance.shape == x.shape


def test_train_mode_leaves_the_statistics_of_batch_norm():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    attribute(model, torch.randn(6, 8))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_when_rules_stop_everything_it_is_said():
    x = torch.randn(3, 8, requires_grad=True)
    with Composite().register(Powers()) as registration:
        with pytest.warns(UserWarning, match="no input of Powers gets any relevance"):
            y = registration.model(x)
        y.backward(y.detach())
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert "every input got 0" in str(registration.report())


def test_a_removed_registration_cannot_be_entered():
    registration = Composite({"": Epsilon()}).register(nn.Linear(2, 2))
    registration.remove()
    with pytest.raises(RegistrationError, match="was removed; register the composite"):
        registration.__enter__()
