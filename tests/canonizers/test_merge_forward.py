"""Batch norm, ReLU, layer: relevance is that of a ReLU with a threshold before the layer with the shift in its bias."""

import copy
import io

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FORMULATIONS, Fn, assert_close, attribute, both_formulations, fingerprint
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lxt_compose import (
    AlphaBeta,
    Composite,
    Epsilon,
    Gamma,
    MatchError,
    MergeBatchNorm,
    MergeBatchNormForward,
    RegistrationError,
    ZPlus,
    check_conservation,
    default_rules,
)
from lxt_compose import attribute as explain
from lxt_compose.canonizers.stand_ins import copy_as_merged

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
RULES = {
    "epsilon": (Epsilon(0.0), oracles.epsilon(0.0)),
    "gamma": (Gamma(0.25), oracles.gamma(0.25)),
    "zplus": (ZPlus(), oracles.zplus()),
    "alpha-beta": (AlphaBeta(2, 1), oracles.alpha_beta(2, 1)),
}


def randomized(model, seed=0):
    """Scales of both signs, statistics far from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            numbers = torch.randn(tensor.shape, generator=generator)
            tensor.data = numbers.abs() + 0.5 if name.endswith("var") else numbers
    return model.double().eval()


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FORWARD = (MergeBatchNormForward(),)


def composite(rule, formulation="relevance", canonizers=FORWARD, **options):
    table = default_rules(formulation, epsilon=0.0)
    rules = {LAYERS: rule}
    return Composite(
        rules, formulation=formulation, defaults=table, canonizers=list(canonizers), strict=True, **options
    )


def assert_same(model, x, tolerance=1e-9):
    """A registered model computes what it is: a copy of it is plain."""
    assert_close(model(x.clone().requires_grad_()).detach(), copy.deepcopy(model)(x).detach(), tolerance)


# ---- one chain, against the equations --------------------------------------------------------------------------------


class NormAct(nn.BatchNorm2d):
    """Batch norm and ReLU in one (timm's BatchNormAct2d)."""

    def forward(self, x):
        return F.relu(
            F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        )


class Chain(nn.Module):
    def __init__(self, norm, layer, relu=F.relu):
        super().__init__()
        self.norm, self.layer, self.relu = norm, layer, relu

    def forward(self, x):
        return self.layer(self.relu(self.norm(x)))


def inplace(x):
    return F.relu(x, inplace=True)


CHAINS = {
    "1 x 1": (lambda: Chain(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, bias=False)), (3, 4, 3)),
    "padded": (lambda: Chain(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), (3, 4, 3)),
    "strides": (lambda: Chain(nn.BatchNorm2d(3), nn.Conv2d(3, 4, (3, 2), 2, (2, 1), bias=False)), (3, 5, 4)),
    "groups, dilation": (lambda: Chain(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, 1, 2, 2, 2)), (4, 4, 4)),
    "same": (lambda: Chain(nn.BatchNorm2d(3), nn.Conv2d(3, 4, (2, 3), padding="same")), (3, 4, 3)),
    "valid": (lambda: Chain(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 2, padding="valid")), (3, 4, 3)),
    "reflected": (lambda: Chain(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), (3, 4, 3)),
    "series": (lambda: Chain(nn.BatchNorm1d(3), nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(inplace=True)), (3, 5)),
    "volumes": (lambda: Chain(nn.BatchNorm3d(2), nn.Conv3d(2, 3, 2, padding=1), torch.relu), (2, 2, 3, 2)),
    "features": (lambda: Chain(nn.BatchNorm1d(5), nn.Linear(5, 4), lambda x: x.relu_()), (5,)),
    "in place": (lambda: Chain(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), inplace), (3, 4, 3)),
    "ReLU inside": (lambda: Chain(NormAct(3), nn.Conv2d(3, 4, 3, padding=1), nn.Identity()), (3, 4, 3)),
    "without statistics of its own": (
        lambda: Chain(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 4, 3, padding=1)), (3, 4, 3)),
    "dropout between": (
        lambda: Chain(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 2, padding=1), nn.Sequential(nn.ReLU(), nn.Dropout())),
        (3, 4, 3)),
}  # fmt: skip


def threshold_relevance(chain, x, r, rule):
    """``u = max(x, -c / a)`` or min, a layer of ``W a`` and ``b + W c`` on u, padded with -c / a, sample by sample.

    A unit that is not active is the constant that its threshold is.
    """
    norm, layer = chain.norm, copy.deepcopy(chain.layer)
    gamma, beta = (torch.ones(()), torch.zeros(())) if norm.weight is None else (norm.weight, norm.bias)
    shape = (-1, *[1] * (x.dim() - 2))
    a = gamma / (norm.running_var + norm.eps).sqrt()
    c = (beta - norm.running_mean * a).detach()
    a, threshold = a.detach(), (-c / a.detach()).reshape(shape)
    u = torch.where(a.reshape(shape) > 0, torch.maximum(x, threshold), torch.minimum(x, threshold))
    sides = []
    if isinstance(layer, nn.modules.conv._ConvNd):
        sides = list(layer._reversed_padding_repeated_twice)
        if layer.padding_mode == "zeros":
            layer.padding = (0,) * (x.dim() - 2)
    zero_padded = bool(sides) and getattr(layer, "padding_mode", "") == "zeros"
    padded = F.pad(u - threshold, sides) + threshold if zero_padded else u
    groups = getattr(layer, "groups", 1)
    per_input = layer.weight.dim() - 2
    scale, shift = (v.reshape(groups, -1).repeat_interleave(len(layer.weight) // groups, 0) for v in (a, c))
    weight = layer.weight.detach()
    layer.weight = nn.Parameter(weight * scale.reshape(*scale.shape, *[1] * per_input))
    moved = (weight * shift.reshape(*shift.shape, *[1] * per_input)).flatten(1).sum(1)
    layer.bias = nn.Parameter(moved if layer.bias is None else layer.bias.detach() + moved)
    dense = oracles.Dense(layer, padded[:1].shape)
    found = torch.cat([dense.relevance(rule, one[None], given[None]) for one, given in zip(padded, r, strict=True)])
    if zero_padded:
        inner = [slice(low, size - high) for size, low, high in zip(
            padded.shape[:1:-1], sides[::2], sides[1::2], strict=True)][::-1]  # fmt: skip
        found = found[(..., *inner)]
    return torch.where(u == x, found, 0)


@both_formulations
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CHAINS)
def test_relevance_is_that_of_a_threshold_before_the_layer(name, rule, formulation):
    build, shape = CHAINS[name]
    chain, x = randomized(build()), draw(2, *shape, seed=3)
    given, oracle = RULES[rule]
    r = chain(x).detach()
    expected = threshold_relevance(chain, x, r, oracle)
    leaf = x.clone().requires_grad_()
    with composite(given, formulation).register(nn.Sequential(chain)) as registration:
        z = registration.model(leaf)
        z.backward(r if formulation == "relevance" else torch.ones_like(r))
    assert_close(z.detach(), r, 1e-9)
    assert_close(leaf.grad if formulation == "relevance" else x * leaf.grad, expected, 1e-6)
    assert registration.report().complete
    (note,) = registration.report().notes
    assert note == "batch norms merged into the layers after them: 0: norm + layer"


@both_formulations
@pytest.mark.parametrize("name", ["padded", "same", "features", "ReLU inside"])
def test_the_books_close(name, formulation):
    build, shape = CHAINS[name]
    model, x = nn.Sequential(randomized(build())), draw(2, *shape, seed=3)
    result = explain(
        model, x, target=lambda z: z.flatten(1)[:, 1], composite=composite(ZPlus(), formulation), ledger=True
    )
    assert result.ledger.unaccounted < 1e-9
    leaf = x.clone().requires_grad_()
    with composite(ZPlus(), formulation).register(model) as registration, check_conservation(registration):
        z = registration.model(leaf)
        z.backward(z.detach() if formulation == "relevance" else torch.ones_like(z))


@pytest.mark.parametrize("canonizers", [[MergeBatchNormForward()], [MergeBatchNorm(), MergeBatchNormForward()]])
def test_what_runs_again_in_a_check_computes_what_the_model_does(canonizers):
    model, x = randomized(DenseNet()), draw(2, 2, 12, 12)
    plain = model(x)
    with composite(ZPlus(), canonizers=canonizers).register(model):
        model(x.clone().requires_grad_())
        assert_close(copy_as_merged(model)(x), plain, 1e-9)
        conv, h = model.features[0]["denselayer1"].conv2, draw(2, 4, 6, 6)
        assert torch.equal(copy_as_merged(conv)(h), F.conv2d(h, conv.weight, conv.bias, padding=conv.padding))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), near=st.sampled_from([1.0, 1e-3, 1e-6]))
def test_shares_have_a_bound_wherever_the_threshold_is(seed, near):
    """Under ZPlus no input gets more than all that arrives, however near it is to where its unit opens."""
    chain = randomized(CHAINS["padded"][0](), seed)
    a = chain.norm.weight / (chain.norm.running_var + chain.norm.eps).sqrt()
    c = chain.norm.bias - chain.norm.running_mean * a
    x = (-c / a).detach().reshape(-1, 1, 1) + near * draw(2, 3, 4, 3, seed=seed)
    leaf = x.clone().requires_grad_()
    with composite(ZPlus()).register(nn.Sequential(chain)) as registration:
        z = registration.model(leaf)
        z.backward(z.detach().abs())
    assert (leaf.grad.flatten(1).abs().sum(1) <= z.detach().abs().flatten(1).sum(1) * (1 + 1e-6)).all()


def test_a_channel_without_a_scale_is_a_constant():
    chain = randomized(CHAINS["padded"][0]())
    chain.norm.weight.data[1] = 0
    x = draw(2, 3, 4, 3)
    found = attribute(nn.Sequential(chain), x, composite(ZPlus()))
    assert torch.isfinite(found).all()
    assert not found[:, 1].any()


# ---- networks --------------------------------------------------------------------------------------------------------


class DenseLayer(nn.Module):
    """As torchvision's: it takes a list of all that was put out before."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(2 * growth), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, given):
        given = [given] if isinstance(given, torch.Tensor) else given
        return self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(torch.cat(given, 1)))))))


class DenseBlock(nn.ModuleDict):
    def __init__(self, inputs, growth, layers):
        super().__init__()
        for i in range(layers):
            self[f"denselayer{i + 1}"] = DenseLayer(inputs + i * growth, growth)

    def forward(self, x):
        found = [x]
        for layer in self.values():
            found.append(layer(found))
        return torch.cat(found, 1)


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        transition = nn.Sequential(
            nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1, bias=False), nn.AvgPool2d(2)
        )
        self.stem = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.features = nn.Sequential(DenseBlock(4, 2, 2), transition, DenseBlock(4, 2, 2), nn.BatchNorm2d(8))
        self.classifier = nn.Linear(8, 3)

    def forward(self, x):
        h = F.relu(self.features(self.stem(x)), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(h, (1, 1)), 1))


class PreActivation(nn.Module):
    """Normalized before its convolutions; its shortcut too takes what is active (He et al. 2016)."""

    relu = staticmethod(F.relu)

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        h = self.relu(self.bn1(x))
        skipped = x if self.shortcut is None else self.shortcut(h)
        return self.conv2(self.relu(self.bn2(self.conv1(h)))) + skipped


class PreActivationResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(PreActivation(4, 4, 1), PreActivation(4, 6, 2))
        self.bn, self.linear = nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x):
        h = F.relu(self.bn(self.blocks(self.stem(x))))
        return self.linear(F.avg_pool2d(h, h.shape[-1]).flatten(1))


class Threshold(nn.Module):
    """What a batch norm and its ReLU become: ``max(x, t)``, or ``min`` for a negative scale, times its scale."""

    def __init__(self, norm):
        super().__init__()
        a = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.a = a.detach().reshape(-1, 1, 1)
        self.c = (norm.bias - norm.running_mean * a).detach().reshape(-1, 1, 1)

    def forward(self, x):
        t = (-self.c / self.a).expand_as(x)
        return torch.where(self.a > 0, torch.maximum(x, t), torch.minimum(x, t)) * self.a


class Moved(nn.Module):
    """The layer after it: the shift is in its bias, and its zeros are padded as what is a zero of the ReLU."""

    def __init__(self, layer, threshold):
        super().__init__()
        self.c, self.pads = threshold.c, layer._reversed_padding_repeated_twice
        self.layer = copy.deepcopy(layer)
        self.layer.padding = (0, 0)
        moved = (layer.weight * self.c).sum((1, 2, 3)).detach()
        self.layer.bias = nn.Parameter(moved if layer.bias is None else moved + layer.bias.detach())

    def forward(self, v):
        rows, columns = v.shape[2] + sum(self.pads[2:]), v.shape[3] + sum(self.pads[:2])
        padded = (-self.c).expand(len(v), -1, rows, columns).clone()
        padded[:, :, self.pads[2] : rows - self.pads[3], self.pads[0] : columns - self.pads[1]] = v
        return self.layer(padded)


def rewritten(model, pairs):
    """The network with thresholds, written out; ReLUs after them are left out, since their threshold is theirs."""
    twin = copy.deepcopy(model)
    for norm, relu, layers in pairs:
        threshold = Threshold(twin.get_submodule(norm))
        put(twin, norm, threshold)
        if relu:
            put(twin, relu, nn.Identity())
        for layer in layers:
            put(twin, layer, Moved(twin.get_submodule(layer), threshold))
    return twin


def put(model, name, module):
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


DENSE_PAIRS = [
    *((f"{layer}.norm{k}", f"{layer}.relu{k}", [f"{layer}.conv{k}"])
      for layer in (f"features.{b}.denselayer{i}" for b in (0, 2) for i in (1, 2)) for k in (1, 2)),
    ("features.1.0", "features.1.1", ["features.1.2"]),
]  # fmt: skip


@both_formulations
@pytest.mark.parametrize("rule", RULES)
def test_a_dense_net_is_the_network_with_thresholds(rule, formulation):
    model, x, given = randomized(DenseNet()), draw(3, 2, 12, 12), RULES[rule][0]
    twin = rewritten(model, DENSE_PAIRS)
    assert_close(twin(x), model(x), 1e-9)
    found = attribute(model, x, composite(given, formulation), 1)
    assert_close(found, attribute(twin, x, composite(given, formulation, canonizers=()), 1), 1e-6)
    if rule == "alpha-beta":
        assert (found - attribute(model, x, composite(given, formulation, canonizers=()), 1)).abs().max() > 1e-2


@both_formulations
@pytest.mark.parametrize("rule", RULES)
def test_a_pre_activation_resnet_is_the_network_with_thresholds(rule, formulation):
    """Its ReLUs are functions."""
    model, x, given = randomized(PreActivationResNet()), draw(3, 2, 8, 8), RULES[rule][0]
    pairs = [(f"blocks.{b}.bn{k}", "", [f"blocks.{b}.conv{k}"]) for b in (0, 1) for k in (1, 2)]
    pairs[2][2].append("blocks.1.shortcut")
    found, twin = attribute(model, x, composite(given, formulation), 1), rewritten(model, pairs)
    for block in twin.blocks:
        block.__dict__["relu"] = nn.Identity()
    assert_close(twin(x), model(x), 1e-9)
    assert_close(found, attribute(twin, x, composite(given, formulation, canonizers=()), 1), 1e-6)


@both_formulations
@pytest.mark.parametrize("build", [DenseNet, PreActivationResNet])
def test_under_epsilon_nothing_changes(build, formulation):
    """It is gradient times input of the same function either way."""
    model, x = randomized(build()), draw(3, 2, 12, 12)
    plain = attribute(model, x, composite(Epsilon(0.0), formulation, canonizers=()), 1)
    for canonizers in ([MergeBatchNormForward()], [MergeBatchNorm(), MergeBatchNormForward()]):
        assert_close(attribute(model, x, composite(Epsilon(0.0), formulation, canonizers), 1), plain, 1e-6)


def test_what_follows_a_layer_goes_to_that_one_first():
    model, x = randomized(DenseNet()), draw(3, 2, 12, 12)
    both = [MergeBatchNorm(), MergeBatchNormForward()]
    with composite(ZPlus(), canonizers=both).register(model) as registration:
        assert_same(model, x)
        notes = registration.report().notes
    assert "batch norms merged: stem: 0 + 1; features.{0,2}.denselayer{1,2}: conv1 + norm2" in notes
    assert any(
        "layers after them: features.{0,2}.denselayer{1,2}: norm1 + conv1; features.1: 0 + 2" in note for note in notes
    )
    merged = copy.deepcopy(model)
    for block in (merged.features[0], merged.features[2]):
        for layer in block.values():
            scale = (layer.norm2.weight / (layer.norm2.running_var + layer.norm2.eps).sqrt()).detach()
            bias = (layer.norm2.bias - layer.norm2.running_mean * scale).detach()
            conv = nn.Conv2d(layer.conv1.in_channels, layer.conv1.out_channels, 1).double()
            conv.weight.data, conv.bias.data = layer.conv1.weight.data * scale[:, None, None, None], bias
            layer.conv1, layer.norm2 = conv, nn.Identity()
    alone = attribute(
        merged, x, composite(ZPlus(), canonizers=[MergeBatchNorm([("stem.0", "stem.1")]), MergeBatchNormForward()]), 1
    )
    assert_close(attribute(model, x, composite(ZPlus(), canonizers=both), 1), alone, 1e-6)


def test_in_the_other_order_what_is_taken_is_named():
    model, x = randomized(DenseNet()), draw(3, 2, 12, 12)
    with composite(ZPlus(), canonizers=[MergeBatchNormForward(), MergeBatchNorm()]).register(model) as registration:
        assert_same(model, x)
        notes = " ".join(registration.report().notes)
    assert (
        "its shift is moved to features.0.denselayer1.conv1; name MergeBatchNorm() before MergeBatchNormForward()"
        in notes
    )


# ---- no trace, and what goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [DenseNet, PreActivationResNet])
@pytest.mark.parametrize("canonizers", [[MergeBatchNormForward()], [MergeBatchNorm(), MergeBatchNormForward()]])
def test_it_leaves_no_trace(build, canonizers):
    model, x = randomized(build()), draw(2, 2, 12, 12)
    before, plain, state = fingerprint(model), model(x), copy.deepcopy(model.state_dict())
    with composite(ZPlus(), canonizers=canonizers).register(model):
        model(x.clone().requires_grad_()).sum().backward()
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert fingerprint(model) != before
    assert fingerprint(model) == before
    assert torch.equal(model(x), plain)


def test_copies_and_pickles_are_the_plain_model():
    model, x = randomized(DenseNet()), draw(2, 2, 12, 12)
    plain = model(x)
    with composite(ZPlus()).register(model):
        model(x.requires_grad_())
        twin, file = copy.deepcopy(model), io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
    for other in (twin, loaded):
        assert torch.equal(other(x), plain)
        conv = other.features[0]["denselayer1"].conv2
        assert conv.bias is None
        assert type(conv.padding) is tuple
        assert conv.padding == (1, 1)
        assert_close(attribute(other, x, composite(ZPlus())), attribute(model, x, composite(ZPlus())), 1e-9)


def test_values_that_change_meanwhile_are_taken_up():
    model, x = randomized(DenseNet()), draw(2, 2, 12, 12)
    layer = model.features[0]["denselayer1"]
    changes = (layer.norm1.bias, layer.conv1.weight, layer.norm1.running_mean, layer.norm2.weight)
    for canonizers in ([MergeBatchNormForward()], [MergeBatchNorm(), MergeBatchNormForward()]):
        with composite(ZPlus(), canonizers=canonizers).register(model):
            for change in changes:
                with torch.no_grad():
                    change.mul_(1.5)
                assert_same(model, x)


@both_formulations
def test_recomputed_by_a_checkpoint(formulation):
    class Checkpointed(nn.Module):
        def __init__(self, inner, part):
            super().__init__()
            self.inner, self.part = inner, part

        def forward(self, x):
            if self.part == "all":
                return checkpoint(self.inner, x, use_reentrant=False)
            return checkpoint(self.inner.layer, F.relu(self.inner.norm(x)), use_reentrant=False)

    chain, x = randomized(CHAINS["padded"][0]()), draw(2, 3, 4, 3)
    expected = attribute(nn.Sequential(chain), x, composite(ZPlus(), formulation))
    named = [MergeBatchNormForward([("inner.norm", "inner.layer")])]
    for part in ("all", "layer"):
        found = attribute(Checkpointed(chain, part), x, composite(ZPlus(), formulation, canonizers=named))
        assert_close(found, expected)


def test_single_precision_stays_what_it_is():
    model, x = randomized(DenseNet()).float(), draw(2, 2, 12, 12).float()
    with composite(ZPlus()).register(model):
        assert model(x.clone().requires_grad_()).dtype == torch.float32
        assert_same(model, x, 1e-4)


class Elsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.layer, self.other = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.layer(torch.sigmoid(self.norm(x))) + self.other(self.norm(x).abs())


def test_nothing_merged_is_a_warning_that_names_the_norms():
    with pytest.warns(
        UserWarning, match=r"merges nothing in Elsewhere; batch norms not merged: norm: no layer takes its out"
    ):
        MergeBatchNormForward().apply(randomized(Elsewhere()))
    MergeBatchNormForward().apply(nn.Sequential(nn.Conv2d(3, 3, 1)))  # no norm: nothing to say
    chain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)).eval()
    with Composite(canonizers=[MergeBatchNorm(), MergeBatchNormForward()]).register(chain) as registration:
        assert any("1: it is merged already" in note for note in registration.report().notes)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ConvTranspose2d(3, 3, 2, padding=1), "computes something else"),
        (nn.Conv2d(4, 3, 3, padding=1), "it normalizes 3 channels, and 2 takes another number"),
        (nn.Bilinear(3, 3, 3), "a trial raised"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), ""),
    ],
)
def test_layers_that_cannot_take_it_are_named(layer, reason):
    model = nn.Sequential(randomized(nn.Sequential(nn.BatchNorm2d(3))), nn.ReLU(), layer.double()).eval()
    if not reason:  # a weight that is computed is read, not replaced
        x = draw(2, 3, 4, 4)
        with Composite(canonizers=[MergeBatchNormForward()]).register(model):
            assert_same(model, x)
        return
    with pytest.raises(RegistrationError, match=f"'0.0' cannot be merged into '2' after it: .*{reason}"):
        MergeBatchNormForward([("0.0", "2")]).apply(model)


def test_a_pair_that_turns_out_not_to_follow_raises_in_forward():
    model, x = randomized(Elsewhere()), draw(2, 3, 4, 4)
    with (
        Composite(canonizers=[MergeBatchNormForward([("norm", "layer")])]).register(model),
        pytest.raises(RegistrationError, match=r"shift of 'norm' is moved to 'layer', which takes something else"),
    ):
        model(x.requires_grad_())


def test_errors():
    with pytest.raises(RegistrationError, match=r"in train mode .* cannot be merged: '0'; call model.eval\(\) first"):
        MergeBatchNormForward().apply(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)))
    with pytest.raises(TypeError, match=r"pairs must be pairs of names such as \[\('norm1', 'conv1'\)\]"):
        MergeBatchNormForward("norm1")
    with pytest.raises(ValueError, match="both need as many"):
        MergeBatchNormForward([("*.norm", "conv")])
    model = randomized(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)))
    with pytest.raises(MatchError, match="no module is named 'norm'"):
        MergeBatchNormForward([("norm", "2")]).apply(model)
    with pytest.raises(RegistrationError, match="ReLU has no running_mean"):
        MergeBatchNormForward([("1", "2")]).apply(model)
    with pytest.raises(RegistrationError, match="ReLU has no weight"):
        MergeBatchNormForward([("0", "1")]).apply(model)
    with Composite(canonizers=[MergeBatchNormForward()]).register(model):
        model[0].train()
        with pytest.raises(RegistrationError, match="'0' was put into train mode while its shift is in '2'"):
            model(draw(2, 3, 4, 4).requires_grad_())


def test_pairs_by_pattern():
    model, x = randomized(DenseNet()), draw(2, 2, 12, 12)
    named = MergeBatchNormForward([("*.norm1", "*.conv1"), ("*.norm2", "*.conv2"), ("features.1.0", "features.1.2")])
    found = attribute(model, x, composite(ZPlus(), canonizers=[named]))
    assert_close(found, attribute(model, x, composite(ZPlus())))


def test_both_formulations_agree_on_networks():
    model, x = randomized(PreActivationResNet()), draw(2, 2, 8, 8)
    found = [attribute(model, x, composite(AlphaBeta(2, 1), formulation), 1) for formulation in FORMULATIONS]
    assert_close(*found, 1e-6)


def test_a_rule_on_a_block_acts_on_the_layers_inside():
    chain, x = randomized(CHAINS["padded"][0]()), draw(2, 3, 4, 3)
    model = nn.Sequential(Fn(lambda self, x: self.chain(x), chain=chain))
    table = default_rules("relevance", epsilon=0.0)
    block = Composite({Chain: ZPlus()}, defaults=table, canonizers=[MergeBatchNormForward()])
    assert_close(attribute(model, x, block), attribute(model, x, composite(ZPlus())))
