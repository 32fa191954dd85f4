"""Composites as Zennit writes them: its own numbers where it is installed, and the entries that they stand for."""

import pytest
import torch
from stand_ins import stand_in_for_torchvision
from torch import nn

from lxt_compose import Composite, MergeBatchNorm, rules
from lxt_compose.compat import zennit as ours

torch.manual_seed(0)
X = torch.randn(2, 3, 12, 12, dtype=torch.float64)
TARGET = torch.eye(5, dtype=torch.float64)[[1, 3]]


def net(norm=False):
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 6, 3), *([nn.BatchNorm2d(6)] if norm else []), nn.ReLU(), nn.AvgPool2d(2)]
    layers += [nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 5)]
    model = nn.Sequential(*layers).double()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.eps = 1e-12  # Zennit leaves it to the norm that is merged, which then divides by sqrt(1 + eps)
    return model.eval()


def theirs():
    """Zennit's names, from wherever it keeps them."""
    stand_in_for_torchvision()
    pytest.importorskip("zennit.rules", reason="Zennit is not installed: pip install --no-deps zennit==0.5.1")
    from zennit import attribution, canonizers, composites, rules, types

    class Names:
        pass

    for module in (attribution, canonizers, composites, rules, types):
        for name, value in vars(module).items():
            setattr(Names, name, staticmethod(value) if callable(value) and not isinstance(value, type) else value)
    return Names


def maps(z):
    """Composites written with the names of a library."""
    base = [(z.Activation, z.Pass()), (z.AvgPool, z.Norm())]
    layers = [*base, (z.Convolution, z.Gamma(0.3)), (z.Linear, z.Epsilon(1e-6, zero_params="bias"))]
    return {
        "layer map": z.LayerMapComposite(layers),
        "first layer": z.SpecialFirstLayerMapComposite(
            [*base, (z.Convolution, z.AlphaBeta(2.0, 1.0)), (z.Linear, z.Epsilon())], [(z.Linear, z.Flat())]
        ),
        "box": z.SpecialFirstLayerMapComposite(
            [*base, (z.Convolution, z.ZPlus()), (z.Linear, z.Epsilon())], [(z.Convolution, z.ZBox(-3.0, 3.0))]
        ),
        "squares": z.SpecialFirstLayerMapComposite([*layers[:2], (z.Linear, z.Epsilon())], [(z.Linear, z.WSquare())]),
        "names": z.NameLayerMapComposite([(["0", "3"], z.ZPlus())], [*base, (z.Linear, z.Epsilon())]),
        "mixed": z.MixedComposite(
            [z.NameMapComposite([(["6"], z.Gamma(1.0))]), z.LayerMapComposite([*base, (z.Linear, z.Epsilon())])]
        ),
        "guided": z.GuidedBackprop(),
        "deconvnet": z.DeconvNet(),
        "smooth": z.BetaSmooth(),
        "flat": z.EpsilonPlusFlat(),
    }


@pytest.mark.parametrize("name", maps(ours))
def test_relevance_is_zennits(name):
    z = theirs()
    with z.Gradient(net(), maps(z)[name]) as attributor:
        output, expected = attributor(X, TARGET)
    with ours.Gradient(net(), maps(ours)[name]) as attributor:
        same, found = attributor(X, TARGET)
    torch.testing.assert_close(same, output, rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * expected.abs().max().item())
    assert attributor.report.complete


def test_batch_norms_merge_as_in_zennit():
    z = theirs()
    rules_of = [(ours.Convolution, ours.ZPlus()), (ours.Linear, ours.Epsilon())]
    composite = ours.LayerMapComposite(rules_of, canonizers=[ours.SequentialMergeBatchNorm()])
    named = ours.LayerMapComposite(rules_of, canonizers=[ours.NamedMergeBatchNorm([(["0"], "1")])])
    base = [(z.Activation, z.Pass()), (z.BatchNorm, z.Pass()), (z.AvgPool, z.Norm()), (z.Convolution, z.ZPlus())]
    base += [(z.Linear, z.Epsilon())]
    reference = z.LayerMapComposite(base, canonizers=[z.SequentialMergeBatchNorm()])
    _, expected = z.Gradient(net(norm=True), reference)(X, TARGET)
    for one in (composite, named):
        _, found = ours.Gradient(net(norm=True), one)(X, TARGET)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * expected.abs().max().item())


def test_attributor_registers_for_one_call_or_a_block():
    model, composite = net(), ours.LayerMapComposite([(ours.Linear, ours.Epsilon())])
    attributor = ours.Gradient(model, composite, attr_output=lambda output: output * (output > 0))
    _, once = attributor(X)
    with attributor:
        _, again = attributor(X)
    assert torch.equal(once, again)
    with composite.context(model) as registered:
        assert registered is model
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_without_a_composite_it_is_the_plain_gradient():
    x = X.clone().requires_grad_()
    net()(x).backward(TARGET)
    _, found = ours.Gradient(net())(X, TARGET)
    torch.testing.assert_close(found, x.grad)


def test_entries_of_several_composites_keep_their_order():
    first = ours.NameMapComposite([("a*", ours.ZPlus())], canonizers=[MergeBatchNorm()])
    second = ours.LayerMapComposite([(ours.Linear, ours.Epsilon(zero_params="bias")), ((), ours.Pass())])
    both = ours.MixedComposite([first, second])
    assert both.entries == [("a*", rules.ZPlus()), (ours.Linear, rules.Epsilon(zero_bias=True))]
    assert len(both.canonizers) == 1
    assert isinstance(both, Composite)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ours.Epsilon(zero_params="weight"), "only the bias can be left out of a rule, .* got 'weight'"),
        (
            lambda: ours.SpecialFirstLayerMapComposite([], [(nn.Linear, ours.Flat()), (nn.Conv2d, ours.WSquare())]),
            "takes one rule, got 2",
        ),
    ],
)
def test_what_cannot_be_said_here_raises(make, message):
    with pytest.raises(ValueError, match=message):
        make()
