"""Inputs at the edge: given twice, oddly named, cut off by the model, or met by a model that is in train mode."""

import re

import pytest
import torch
from support import Fn
from torch import nn
from torch.nn import functional as F

from lxt_compose import (
    AttributionError,
    Composite,
    Epsilon,
    Identity,
    RegistrationError,
    UncoveredError,
    ValueAttention,
    attribute,
)


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
    """A negative power of a layer: by default it is a statistic."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x):
        return self.layer(x).abs().rsqrt()


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
    with pytest.raises(AttributionError, match=r"of Cut depends on no input.*detach"):
        attribute(Cut().eval(), torch.randn(2, 8))


def test_names_that_contain_the_names_of_constants_are_inputs():
    x = torch.randn(2, 8)
    assert attribute(Renamed().eval(), {"wavelength": x}).relevance.shape == x.shape


def test_train_mode_leaves_the_statistics_of_batch_norm():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    attribute(model, torch.randn(6, 8))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_when_rules_stop_everything_it_is_said_with_the_remedy():
    x = torch.randn(3, 8, requires_grad=True)
    remedy = r"by default that is rsqrt in \(model\); to let it pass, give it a rule: \{torch.rsqrt: Identity\(\)\}"
    with Composite().register(Powers()) as registration:
        with pytest.warns(UserWarning, match=f"no input of Powers gets any relevance.*{remedy}"):
            y = registration.model(x)
        y.backward(y.detach())
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert re.search(f"every input got 0.*{remedy}", " ".join(registration.report().notes))
    assert attribute(Powers(), x.detach(), target=0, composite=Composite({torch.rsqrt: Identity()})).relevance.any()


STOPPED = {
    "torch.div": (lambda x: 1 / x, {torch.div: Identity()}),
    "torch.reciprocal": (lambda x: x.reciprocal(), {torch.reciprocal: Identity()}),
    "torch.pow": (lambda x: x**-2, {torch.pow: Identity()}),
    "torch.floor": (lambda x: (9 * x).floor(), {torch.floor: Identity()}),
    "F.grid_sample": (
        lambda x: F.grid_sample(torch.eye(4).expand(3, 1, 4, 4), x.tanh().view(3, 2, 2, 2), align_corners=True).flatten(
            1
        ),
        {F.grid_sample: Epsilon()},
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_the_key_that_the_warning_names_lets_relevance_pass(name):
    function, rules = STOPPED[name]
    torch.manual_seed(0)
    model = Fn(lambda self, x: function(self.layer(x)), layer=nn.Linear(8, 8))
    x = torch.randn(3, 8)
    with Composite().register(model), pytest.warns(UserWarning, match=rf"give it a rule: \{{{name}: \w+\(\)\}}"):
        model(x.clone().requires_grad_())
    result = attribute(model, x, target=lambda y: y.sum(1), composite=Composite(rules))
    assert result.relevance.any()


def test_a_removed_registration_cannot_be_entered():
    registration = Composite({"": Epsilon()}).register(nn.Linear(2, 2))
    registration.remove()
    with pytest.raises(RegistrationError, match="was removed; register the composite"):
        registration.__enter__()


class Shared(nn.Module):
    """A layer whose output is scaled and shifted by inputs that all samples share."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(8, 3), nn.Embedding(4, 8)

    def forward(self, x, scale, shift):
        return self.layer(x * scale + shift + self.table(torch.arange(1)))


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_what_samples_share_does_not_depend_on_the_batch_size(formulation):
    torch.manual_seed(0)
    model = Shared().double().eval()
    inputs = (torch.randn(5, 8).double(), torch.randn(()).double(), torch.randn(8).double())
    composite = Composite(formulation=formulation)
    whole = attribute(model, inputs, target=1, composite=composite, layers="layer").relevances
    for size in (1, 2, 4, 5):
        found = attribute(model, inputs, target=1, composite=composite, batch_size=size, layers="layer")
        for name, relevance in whole.items():
            torch.testing.assert_close(found.relevances[name], relevance)
    assert [list(r.shape) for r in whole.values()] == [[5, 8], [], [8]]


class SequenceFirst(nn.Module):
    """A layer that puts the positions before the samples."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x.transpose(0, 1)).mean(0))


def test_layers_whose_samples_cannot_be_told_apart_are_refused_in_batches():
    torch.manual_seed(0)
    model, x = SequenceFirst().eval(), torch.randn(4, 7, 8)
    assert attribute(model, x, layers="layer").latent["layer"].shape == (7, 4, 8)
    with pytest.raises(
        AttributionError, match=r"relevance of layer has shape \[7, 2, 8\] for 2 samples.*batch_size=None"
    ):
        attribute(model, x, layers="layer", batch_size=2)


class Detaching(nn.Module):
    """A block that lets relevance pass one of its branches alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.layer(x).detach() + self.layer(x).data


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_branches_that_the_model_cuts_off_are_told(formulation):
    model = nn.Sequential(Detaching(), Detaching())
    with Composite(formulation=formulation).register(model) as registration:
        model(torch.randn(2, 8, requires_grad=True))
        (note,) = registration.report().notes
    assert note == "cut off by the model itself, so no relevance passes: Tensor.detach in {0,1}, Tensor.data in {0,1}"
    shapes = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    with Composite(formulation=formulation).register(shapes) as registration:
        shapes(torch.randn(2, 8, requires_grad=True))
    assert registration.report().notes == ()


def test_constants_of_parts_called_on_their_own_are_no_gap():
    """Embedding the ids by hand, as one does for a gradient, hides no operation that carries relevance."""
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 2))
    with Composite(formulation="gradient").register(model) as registration:
        x = model[0](torch.tensor([[1, 2]])).detach().requires_grad_()
        assert registration.report().notes == ()
        model[1](x).sum().backward()
        assert registration.report().notes == ("called on their own, so operations between them were not seen: 1",)


class Features(nn.Module):
    """A model whose features one may ask for without its head."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def features(self, x):
        h = nn.functional.gelu(self.stem(x))
        return h + nn.functional.silu(self.mid(h)) * h

    def forward(self, x):
        return self.head(self.features(x))


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_operations_between_parts_are_uncovered(formulation):
    model, x = Features(), torch.randn(3, 8, requires_grad=True)
    with Composite(formulation=formulation).register(model) as registration, registration.ledger() as ledger:
        y = model.head(model.features(x))
        y[:, 0].sum().backward()
        report = registration.report()
    assert not report.complete
    assert {row.target for row in report.uncovered} == {"GeluBackward0", "AddBackward0"}
    assert {row.note for row in report.uncovered} == {"run between parts of the model that were called on their own"}
    assert "called on their own, each with a seed and samples of its own: stem, mid, head" in str(ledger)
    with Composite(formulation=formulation, strict=True).register(model):
        with pytest.raises(UncoveredError, match="GeluBackward0 in the model itself"):
            model.features(x)
        model(x)
    with Composite(formulation=formulation).register(model) as registration:
        model.head(model.stem(x).view(3, 8).t().t())
        report = registration.report()
    assert not report.uncovered
    assert not report.complete
    assert str(report).startswith("NOT known to be complete: parts of the model were called on their own")


class Peeking(nn.Module):
    """A layer whose output is scaled by what it computes without gradients."""

    def __init__(self, scale):
        super().__init__()
        self.layer, self.scale = nn.Linear(8, 3), scale

    def forward(self, x):
        h = self.layer(x)
        return h * self.scale(h)


def without_gradients(h):
    with torch.no_grad():
        return h.exp()


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        (without_gradients, "exp without gradients in (model)"),
        (lambda h: h.sum().item(), "Tensor.item in (model)"),
        (lambda h: float(h.sum()), "Tensor.__float__ in (model)"),
        (lambda h: h.new_tensor(h[0].tolist()), "Tensor.tolist in (model)"),
    ],
    ids=["no_grad", "item", "float", "tolist"],
)
def test_what_a_model_computes_without_gradients_is_told(scale, told):
    with Composite(formulation="gradient").register(Peeking(scale)) as registration:
        registration.model(torch.randn(2, 8, requires_grad=True))
        (note,) = registration.report().notes
    assert note == f"cut off by the model itself, so no relevance passes: {told}"


def test_nothing_is_complete_if_nothing_was_carried():
    with Composite().register(nn.Linear(8, 3)) as registration:
        with torch.no_grad():
            registration.model(torch.randn(2, 8, requires_grad=True))
        assert not registration.report().complete
        registration.model(torch.randn(2, 8, requires_grad=True))
        assert registration.report().complete


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_nothing_is_complete_if_no_way_leads_back(formulation):
    with Composite(formulation=formulation).register(Cut()) as registration:
        registration.model(torch.randn(2, 8, requires_grad=True))
        assert not registration.report().complete


def test_a_model_that_begins_anew_is_told():
    """Its output depends on a leaf of its own, and on no input."""

    class Anew(Cut):
        def forward(self, x):
            return super().forward(x).detach().requires_grad_() * 2

    with pytest.raises(AttributionError, match="of Anew depends on no input"):
        attribute(Anew(), torch.randn(2, 8), target=0, ledger=True)


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_an_output_that_a_rule_cuts_off_has_a_backward(formulation):
    """As the weights of an attention whose rule stops queries and keys."""

    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[1].sum(1)

    model, x = Weights().eval(), torch.randn(2, 5, 8, requires_grad=True)
    with Composite({nn.MultiheadAttention: ValueAttention()}, formulation=formulation).register(model):
        with pytest.warns(UserWarning, match="no input of Weights gets any relevance"):
            y = model(x)
        y.backward(torch.ones_like(y))
    assert not x.grad.any()


def test_parameters_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(8, 3))
    with pytest.raises(RegistrationError, match="'0' in Sequential has parameters that were made in inference mode"):
        Composite().register(model)


class Halved(torch.autograd.Function):
    """What is computed in it is not recorded, but has a backward."""

    @staticmethod
    def forward(ctx, x):
        return x.exp().log() * 0.5

    @staticmethod
    def backward(ctx, slot):
        return slot * 0.5


def test_steps_of_a_custom_function_are_no_cut():
    with Composite(formulation="gradient").register(Peeking(Halved.apply)) as registration:
        registration.model(torch.randn(2, 8, requires_grad=True))
        report = registration.report()
    assert report.notes == ()
    assert [row.target for row in report.uncovered] == ["Halved.apply"]
