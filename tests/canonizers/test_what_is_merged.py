"""What is merged is told by what modules compute: subclasses, frozen norms, norms with an activation inside."""

import pytest
import torch
from support import assert_close, fingerprint
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon, MergeBatchNorm, RegistrationError
from lxt_compose.rules import default_rules


class SamePadding(nn.Conv2d):
    """Pads as much as the input needs, which a symbolic trace cannot follow (timm's Conv2dSame)."""

    def forward(self, x):
        needed = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:]]
        return F.conv2d(F.pad(x, (0, needed[1], 0, needed[0])), self.weight, self.bias, 2, 0, 1, self.groups)


class Upsampled(nn.ConvTranspose2d):
    def forward(self, x):
        return F.conv_transpose2d(x, self.weight, self.bias, self.stride, groups=self.groups)


class TransposedLinear(nn.Module):
    """``x W + b`` with a weight [in, out] (transformers' Conv1D), no subclass of anything."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class FrozenNorm(nn.Module):
    """A batch norm of buffers, with its eps where nobody finds it (DETR) or as an attribute (torchvision)."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class NormAct(nn.BatchNorm2d):
    """Batch norm and activation in one (timm's BatchNormAct2d)."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return self.act(self.drop(x))


class ConvWithNorm(nn.Conv2d):
    """A convolution that holds its norm and calls it itself (detectron2's Conv2d)."""

    def __init__(self, *args):
        super().__init__(*args)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, x):
        if x.numel() == 0:
            raise ValueError("empty")
        return F.relu(self.norm(F.conv2d(x, self.weight, self.bias, self.stride, self.padding)))


def randomized(model):
    torch.manual_seed(0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.5 if name.endswith("var") else torch.randn_like(tensor)
    return model.double().eval()


IMAGE = (2, 4, 7, 7)
MERGED = {
    "same padding": (lambda: nn.Sequential(SamePadding(4, 6, 3, bias=False), nn.BatchNorm2d(6)), IMAGE),
    "depthwise": (lambda: nn.Sequential(SamePadding(4, 4, 3, groups=4), nn.BatchNorm2d(4)), IMAGE),
    "transposed": (lambda: nn.Sequential(Upsampled(4, 4, 2, 2, groups=2), nn.BatchNorm2d(4)), IMAGE),
    "transposed linear": (lambda: nn.Sequential(TransposedLinear(4, 4), nn.BatchNorm1d(4)), (2, 4)),
    "frozen": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), FrozenNorm(6)), IMAGE),
    "instance norm": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6, affine=True, track_running_stats=True)),
        IMAGE,
    ),
    "with activation": (lambda: nn.Sequential(SamePadding(4, 6, 3), NormAct(6)), IMAGE),
    "inside": (lambda: nn.Sequential(ConvWithNorm(4, 6, 3)), IMAGE),
}


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
@pytest.mark.parametrize("name", MERGED)
def test_relevance_is_that_of_one_affine_map(name, formulation):
    """Oracle: ``R_i = sum_j W'_ji x_i R_j / z_j`` with W' found by differences, R passing a ReLU where it is open."""
    build, shape = MERGED[name]
    model = randomized(build())
    before = fingerprint(model)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    plain = model(x).detach()
    composite = Composite(
        formulation=formulation, canonizers=[MergeBatchNorm()], defaults=default_rules(formulation, 1e-12)
    )
    with composite.register(model) as registration:
        y = model(x)
        assert_close(y.detach(), plain, 1e-12)
        given = torch.randn_like(y) * (y.detach() != 0)
        y.backward(given if formulation == "relevance" else given / torch.where(y == 0, 1, y.detach()))
        report = registration.report()
    assert report.complete
    assert len(report.notes) == 1
    assert report.notes[0].startswith("batch norms merged: ")
    found = x.grad if formulation == "relevance" else x.detach() * x.grad
    slope = torch.func.vjp(model, x.detach())[1]
    assert_close(found, x.detach() * slope(given / torch.where(y == 0, 1, y.detach()))[0], 1e-8)
    assert fingerprint(model) == before


class Adapted(nn.Linear):
    """LoRA in a subclass, as in loralib: merging would scale a part of its weight only."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + x @ self.lora_A.t() @ self.lora_B.t()


class Wrapper(nn.Module):
    """An adapter around a layer, as in PEFT, which shows the weight of the layer within."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.base_layer, self.down, self.up = nn.Linear(inputs, outputs), nn.Linear(inputs, 2), nn.Linear(2, outputs)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Activated(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias).tanh()


def old_weight_norm():
    return nn.utils.weight_norm(nn.Linear(4, 4))


KEPT = {
    "adapter": (lambda: Adapted(4, 4), "with merged values they compute something else"),
    "wrapper": (lambda: Wrapper(4, 4), "the weight of 0 is computed from others"),
    "activation": (lambda: Activated(4, 4), "with merged values they compute something else"),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), "the weight of 0 is computed"),
    "weight norm": (old_weight_norm, "the weight of 0 is computed from others"),
    "embedding": (lambda: nn.Embedding(4, 4), "a trial raised RuntimeError"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", KEPT)
def test_what_is_no_affine_map_with_its_weight_is_left_with_a_warning_that_says_why(name):
    layer, reason = KEPT[name]
    model = randomized(nn.Sequential(layer(), nn.BatchNorm1d(4)))
    x = torch.arange(4) if name == "embedding" else torch.randn(3, 4, dtype=torch.float64)
    plain = model(x)
    with pytest.warns(UserWarning, match=f"merges nothing in Sequential; batch norms not merged: 1: {reason}"):
        handle = MergeBatchNorm().apply(model)
    assert torch.equal(model(x), plain)
    handle.remove()
    with pytest.raises(RegistrationError, match=f"'1' cannot be merged into '0': {reason}"):
        MergeBatchNorm(pairs=[("0", "1")]).apply(model)


def test_an_adapter_that_comes_to_do_something_while_it_is_merged():
    model = randomized(nn.Sequential(Adapted(4, 4), nn.BatchNorm1d(4)))
    nn.init.zeros_(model[0].lora_B)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    with Composite({nn.Linear: Epsilon()}, canonizers=[MergeBatchNorm()]).register(model):
        model(x)
        with torch.no_grad():
            model[0].lora_B.add_(1)
        with pytest.raises(RegistrationError, match="'1' was merged into '0', and cannot be with their new values"):
            model(x)


def test_the_activation_inside_a_norm_has_a_row_of_its_own():
    model = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), NormAct(6)))
    with Composite(canonizers=[MergeBatchNorm()]).register(model) as registration:
        model(torch.randn(IMAGE, dtype=torch.float64, requires_grad=True))
        rows = {row.path: row for row in registration.report().rows if row.target == "relu"}
    assert rows["1.act"].rule.startswith("Identity")


@pytest.mark.parametrize("hook", [lambda module, args, y: y * 2, lambda module, args, y: y.mul_(2)])
def test_a_hook_that_changes_what_is_normalized_is_refused(hook):
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).eval()
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    model[0].register_forward_hook(lambda module, args, y: None)  # one that only looks does no harm
    y = model(x)
    with Composite(canonizers=[MergeBatchNorm()]).register(model):
        torch.testing.assert_close(model(x), y)
        model[0].register_forward_hook(hook)
        with pytest.raises(RegistrationError, match="a hook changes that"):
            model(x)
