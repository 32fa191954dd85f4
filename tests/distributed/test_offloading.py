"""Weights that accelerate brings in while a module runs, and takes away again."""

import pytest
import torch
from sharded_models import inputs, transformer
from torch import nn

from lxt_compose import Composite, Gamma

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
COMPOSITES = {
    "attnlrp": Composite(),
    "gradients": Composite(formulation="gradient"),
    "gamma": Composite({nn.Linear: Gamma()}),
}


def on_cpu(model, folder):
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model, folder):
    return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def dispatched(model, folder):
    places = {"blocks.0": "cpu", "blocks.1": "disk", "head": "cpu"}
    return accelerate.dispatch_model(model, device_map=places, main_device="cpu", offload_dir=folder)


def explained(registration, model):
    x = inputs().requires_grad_()
    y = model(x)
    y[:, 1].backward(y[:, 1].detach() if registration.formulation == "relevance" else torch.ones_like(y[:, 1]))
    return y.detach(), x.grad, registration.report()


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("offload", [on_cpu, on_disk, dispatched])
@pytest.mark.parametrize("first", ["offloaded", "registered"])
def test_offloaded_weights_are_explained_as_those_in_memory(name, offload, first, tmp_path):
    composite, whole, model = COMPOSITES[name], transformer(), transformer()
    with composite.register(whole) as registration:
        y, slot, _ = explained(registration, whole)
    if first == "offloaded":
        offload(model, tmp_path)
    with composite.register(model) as registration:
        if first == "registered":
            offload(model, tmp_path)
        for _ in range(2):
            y_again, slot_again, report = explained(registration, model)
    assert torch.equal(y_again, y)
    assert torch.equal(slot_again, slot)
    assert report.complete, str(report)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert any(parameter.is_meta for parameter in model.parameters())
