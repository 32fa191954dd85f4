"""The attribution method for Captum: its conventions, its numbers where Captum's own LRP is right, its metrics."""

import pytest
import torch
from torch import nn

from lxt_compose import AttributionError, Composite, Epsilon, Gamma, attribute, compat, presets
from lxt_compose.compat.captum import chosen, relevance_of

torch.manual_seed(0)
X = torch.randn(3, 6, dtype=torch.float64)
Y = torch.randn(3, 6, dtype=torch.float64)


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).double().eval()


class TwoInputs(nn.Module):
    """Two inputs that carry relevance, and a factor that is held."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()

    def forward(self, x, y, factor=1.0):
        return (self.first(x) + self.second(y)) * factor


@pytest.fixture
def captum():
    return pytest.importorskip("captum", reason="Captum is not installed: pip install --no-deps captum==0.9.0")


@pytest.mark.parametrize("target", [2, [0, 1, 3], torch.tensor([0, 1, 3]), torch.tensor([2]), (1,), [(0,), (1,), (3,)]])
def test_targets_are_captums(target):
    output = torch.arange(12.0).reshape(3, 4)
    each = [2] * 3 if isinstance(target, int) or (len(target) == 1 and torch.is_tensor(target)) else [0, 1, 3]
    each = [1] * 3 if target == (1,) else each
    assert chosen(output, target).tolist() == [output[n, i].item() for n, i in enumerate(each)]


def test_targets_of_more_dimensions_are_tuples():
    output = torch.arange(24.0).reshape(2, 3, 4)
    assert chosen(output, (1, 2)).tolist() == [6.0, 18.0]
    assert chosen(output, [(0, 0), (2, 3)]).tolist() == [0.0, 23.0]


@pytest.mark.parametrize(
    ("output", "target", "message"),
    [
        (torch.zeros(2, 3), None, r"a target is needed: the output has \[3\] numbers"),
        (torch.zeros(2, 3), (1, 1), r"does not choose one number for each sample of an output \[2, 3\]"),
        (torch.zeros(2, 3), [1, 1, 1], "does not choose one number for each sample"),
        ({"logits": torch.zeros(2)}, 0, "the output must be a tensor, got dict: wrap the model"),
    ],
)
def test_other_targets_raise(output, target, message):
    with pytest.raises(ValueError, match=message):
        chosen(output, target)


@pytest.mark.parametrize("composite", [Composite(), presets.attnlrp(), Composite({nn.Linear: Gamma(0.3)})])
def test_relevance_is_that_of_attribute(composite):
    model = net()
    (found,), delta, report = relevance_of(model, composite, (X,), [0, 1, 3], None)
    expected = attribute(model, X, target=[0, 1, 3], composite=composite)
    torch.testing.assert_close(found, expected.relevance)
    torch.testing.assert_close(delta, expected.output - expected.relevance.sum(1))
    assert report.complete


def test_additional_arguments_are_constants():
    model, factor = TwoInputs(), torch.full((3, 1), 2.5, dtype=torch.float64)
    found, delta, _ = relevance_of(model, Composite({nn.Linear: Epsilon(0.0)}), (X, Y), 1, factor)
    for x, layer, relevance in zip((X, Y), (model.first, model.second), found, strict=True):
        torch.testing.assert_close(relevance, x * layer.weight[1].detach() * 2.5, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        delta, ((model.first.bias + model.second.bias)[1] * 2.5).detach().expand(3), rtol=1e-5, atol=1e-5
    )


def test_what_carries_nothing_is_refused():
    with pytest.raises(
        TypeError, match=r"input 0 carries no relevance here: it is torch.int64; explain its embeddings"
    ):
        relevance_of(net(), Composite(), (torch.zeros(2, dtype=torch.long),), 0, None)

    class Cut(nn.Module):
        def forward(self, x):
            return x.detach()

    with pytest.raises(AttributionError, match="the output of Cut depends on none of the inputs"):
        relevance_of(Cut(), Composite(), (X,), 0, None)
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module, got .* of type int"):
        compat.captum_lrp(3)


def test_it_is_captums_own_lrp_on_a_net_of_its_kind(captum):
    from captum.attr import LRP

    model = net()
    method = compat.captum_lrp(model, Composite({nn.Linear: Epsilon(1e-9)}))
    expected = LRP(net()).attribute(X, target=2)
    torch.testing.assert_close(method.attribute(X, target=2), expected, rtol=1e-5, atol=1e-6)
    assert method.report.complete


def test_it_works_where_captum_takes_a_method(captum):
    from captum.attr import Attribution, NoiseTunnel
    from captum.metrics import infidelity, sensitivity_max

    model = net()
    method = compat.captum_lrp(model, "attnlrp")
    assert isinstance(method, Attribution)
    assert method.has_convergence_delta()
    found, delta = method.attribute((X,), target=[0, 1, 3], return_convergence_delta=True)
    torch.testing.assert_close(found[0].sum(1) + delta, model(X)[range(3), [0, 1, 3]].detach())
    torch.manual_seed(0)
    score = infidelity(
        model, lambda x: (0.01 * torch.randn_like(x), x - 0.01), X, method.attribute(X, target=1), target=1
    )
    assert score.shape == (3,)
    assert sensitivity_max(method.attribute, X, target=1, perturb_radius=1e-6).max() < 0.1
    smooth = NoiseTunnel(method).attribute(X, target=1, nt_samples=2, stdevs=1e-9)
    torch.testing.assert_close(smooth, method.attribute(X, target=1), rtol=1e-4, atol=1e-6)


def test_without_captum_it_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "captum.attr", None)
    compat.captum._class.cache_clear()
    with pytest.raises(ImportError, match="needs Captum: pip install captum"):
        compat.captum_lrp(net())
