"""The conservation check on merged batch norms, Taylor decompositions, and functions that stand in place of rules."""

import operator

import pytest
import torch
from support import FORMULATIONS, Fn, fingerprint, label
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon, MergeBatchNorm, TaylorDecomposition, check_conservation, presets
from lxt_compose.errors import ConservationError
from lxt_compose.lxt import functional


def checked(model, x, composite):
    """The rows of the check for a relevance of 1 at every output, by where they ran."""
    x = x.clone().requires_grad_()
    with composite.register(model) as registration, check_conservation(registration) as check:
        y = model(x)
        y.backward(torch.ones_like(y))
    return {row.path or row.name: row for row in check.rows}


def normed():
    """Convolutions with batch norms that have statistics, weights and biases of their own."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    model = nn.Sequential(block, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, -1, 1), nn.init.normal_(module.bias)
    return model.double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("rules", [{}, {"0": Epsilon()}], ids=["layers", "block"])
def test_merged_batch_norms_keep_the_bias_of_the_merged_layer(rules, formulation):
    model, x = normed()
    before = fingerprint(model)
    composite = presets.epsilon(rules, formulation=formulation, canonizers=[MergeBatchNorm()])
    rows = checked(model, x, composite)
    assert rows["1"].absorbed["bias"].abs().min() > 1e-6
    if rules:
        assert rows["0"].absorbed["bias"].abs().min() > 1e-6  # the convolution inside has none but the merged one
    else:
        assert not rows["2"].absorbed.get("bias", torch.zeros(1)).any()
    assert fingerprint(model) == before


def test_without_merging_the_batch_norm_keeps_its_own():
    model, x = normed()
    assert checked(model, x, presets.epsilon())["2"].absorbed["bias"].abs().min() > 1e-6


REFERENCES = [0.0, None, 0.3, lambda x: x / 2]


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("reference", REFERENCES, ids=label)
@pytest.mark.parametrize(
    "function", [lambda m, x: m.layer(x), lambda m, x: m.layer(x).sigmoid()], ids=["linear", "not"]
)
def test_taylor_decomposition_keeps_bias_and_higher_orders(function, reference, formulation):
    torch.manual_seed(0)
    model, x = Fn(function, layer=nn.Linear(5, 4)).double(), torch.randn(3, 5, dtype=torch.float64)
    rows = checked(nn.Sequential(model), x, Composite({"0": TaylorDecomposition(reference)}, formulation=formulation))
    (row,) = rows.values()
    assert row.absorbed["bias"].abs().min() > 1e-6
    is_exact = reference is None or not model(x).gt(0).all()  # a sigmoid is positive; at x itself nothing is left
    assert (row.absorbed["higher orders"].abs().max() < 1e-12) == is_exact


def test_taylor_decomposition_that_distributes_the_bias_does_not_keep_it():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4)).double(), torch.randn(3, 5, dtype=torch.float64)
    assert "bias" not in checked(model, x, Composite({"0": TaylorDecomposition(bias=True)}))["0"].absorbed


# ---- functions in place of rules ---------------------------------------------------------------------------------


def added(a, b):
    return functional.add2(a, b, epsilon=1e-9)


def gradient_of_a_product(a, b):
    return torch.mul(a, b)


def test_a_function_in_place_of_a_rule_has_its_row():
    torch.manual_seed(0)
    model = nn.Sequential(Fn(lambda m, x: m.layer(x) + x, layer=nn.Linear(5, 5))).double()
    row = checked(model, torch.randn(3, 5, dtype=torch.float64), Composite({operator.add: added}))["0"]
    assert row.name == "add"
    assert row.rule.endswith("added")
    assert not row.absorbed


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_function_that_does_not_conserve_is_named(formulation):
    torch.manual_seed(0)
    model = nn.Sequential(Fn(lambda m, x: m.layer(x) * F.silu(x), layer=nn.Linear(5, 5))).double()
    composite = Composite({torch.mul: gradient_of_a_product}, formulation=formulation)
    with pytest.raises(ConservationError, match=r"mul in '0' under \S*gradient_of_a_product, sample [0-2]: in"):
        checked(model, torch.randn(3, 5, dtype=torch.float64), composite)
