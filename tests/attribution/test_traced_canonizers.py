"""Canonizers in graphs: the eager numbers bit for bit, of the weights as they are, and nothing left behind."""

import pytest
import torch
from support import fingerprint
from torch import nn

from lxt_compose import MergeBatchNorm, MergeBatchNormForward, TraceError, attribute, presets


def normed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(4, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3),
    ).eval()  # fmt: skip
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * (0.5 if "norm" not in name else 0.1))
    return model


CANONIZERS = {
    "before": [MergeBatchNorm()],
    "behind": [MergeBatchNormForward()],
    "both": [MergeBatchNorm(), MergeBatchNormForward()],
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", CANONIZERS)
def test_canonized_models_as_graphs(name, dynamic):
    model, composite = normed(), presets.epsilon_plus_flat(canonizers=CANONIZERS[name])
    x = torch.randn(3 if dynamic else 2, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    attribute(model, x[:2], target=1, composite=composite)
    before = fingerprint(model)
    traced = composite.trace(model, x[:2], target=1, dynamic=dynamic)
    with composite.register(model) as registration:
        inside = registration.trace(x, target=1)
    assert fingerprint(model) == before
    for _ in range(2):
        expected = attribute(model, x, target=1, composite=composite)
        for graph in (traced, inside):
            found = graph(x)
            assert torch.equal(found.relevance, expected.relevance)
            assert torch.equal(found.output, expected.output)
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.mul_(1.25)
    model[5].eps = model[0].eps = 0.5
    with pytest.raises(TraceError, match="attribute 'eps'"):
        traced(x)


def test_a_canonized_model_runs_eagerly_as_before_after_it_was_traced():
    model, composite = normed(), presets.epsilon_plus(canonizers=CANONIZERS["both"])
    x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    expected = attribute(model, x, target=1, composite=composite).relevance
    with composite.register(model) as registration:
        registration.trace(x, target=1)
        leaf = x.clone().requires_grad_()
        y = model(leaf)[:, 1]
        y.backward(y.detach())
    assert torch.equal(leaf.grad, expected)
