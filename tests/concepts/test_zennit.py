"""The same numbers as rules of Zennit with masks on what flows back, where that library is installed."""

import importlib.util

import peers
import pytest
import torch
from support import assert_close
from torch import nn

from lxt_compose import Composite, Epsilon, Gamma, Pass, ZPlus
from lxt_compose.concepts import conditional

if importlib.util.find_spec("zennit") is None:
    pytest.skip("pip install --no-deps -r tests/compat/requirements.txt", allow_module_level=True)
rules, core = peers.load("zennit.rules"), peers.load("zennit.core")


def small_vgg():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 10),
        nn.ReLU(), nn.Linear(10, 4),
    ).double().eval()  # fmt: skip


def masked_by_hand(model, x, rules_of_zennit, masks, index):
    """Relevance by Zennit, with tensor hooks that mask what flows back at the outputs of modules."""
    x = x.clone().requires_grad_()

    def map_module(context, name, module):
        return next((rule for kind, rule in rules_of_zennit if isinstance(module, kind)), None)

    composite = core.Composite(module_map=map_module)
    with composite.context(model) as modified:
        handles = []
        for name, mask in masks.items():

            def hold(module, args, output, mask=mask):
                output.register_hook(lambda slot: slot * mask)

            handles.append(dict(modified.named_modules())[name].register_forward_hook(hold))
        y = modified(x)
        start = torch.zeros_like(y)
        start[:, index] = y[:, index].detach()
        (relevance,) = torch.autograd.grad(y, x, start)
        for handle in handles:
            handle.remove()
    return relevance


@pytest.mark.parametrize("rule", ["epsilon", "zplus", "gamma"])
def test_channels_of_one_and_of_two_layers(rule):
    ours = {"epsilon": Epsilon(), "zplus": ZPlus(), "gamma": Gamma(0.25)}[rule]
    theirs = {"epsilon": rules.Epsilon(), "zplus": rules.ZPlus(), "gamma": rules.Gamma(0.25)}[rule]
    model, x = small_vgg(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    mapped = [(nn.Conv2d, theirs), (nn.Linear, rules.Epsilon()), (nn.ReLU, rules.Pass())]
    composite = Composite({nn.Conv2d: ours, nn.Linear: Epsilon(), nn.ReLU: Pass()})
    of_two = torch.zeros(6, 1, 1, dtype=torch.float64)
    of_two[1:5] = 1
    of_five = torch.zeros(8, 1, 1, dtype=torch.float64)
    of_five[:5] = 1
    found = conditional(model, x, ["2[1:5]", "5[:5]", ("2[1:5]", "5[:5]")], target=2, composite=composite)
    for number, masks in enumerate([{"2": of_two}, {"5": of_five}, {"2": of_two, "5": of_five}]):
        expected = masked_by_hand(model, x, mapped, masks, 2)
        assert float(expected.abs().max()) > 0
        assert_close(found.relevance[number::3], expected, 1e-6)
