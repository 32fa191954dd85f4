"""The rules that change the gradient of ReLU."""

import math

import pytest
import torch
from support import Fn, assert_close
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop, RuleError


def test_rules_that_change_relu_gradients():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for rule, start, wanted in (
        (ReLUDeconvNet(), [1.0, -1.0, 1.0, 1.0, -1.0], [1.0, 0.0, 1.0, 1.0, 0.0]),
        (ReLUGuidedBackprop(), [1.0, -1.0, 1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 1.0, 0.0]),
        (ReLUBetaSmooth(2.0), [1.0] * 5, [1 / (1 + math.exp(-2 * value)) for value in (-2, -1, 0, 1, 2)]),
    ):
        for model, key in ((nn.ReLU(), nn.ReLU), (nn.Sequential(nn.ReLU()), ""), (Fn(lambda _, x: F.relu(x)), F.relu)):
            with Composite({key: rule}, formulation="gradient").register(model):
                z = model(x)
                assert torch.equal(z, x.relu())
                (found,) = torch.autograd.grad(z, x, torch.tensor(start).double())
            assert_close(found, torch.tensor(wanted, dtype=torch.float64), 1e-12)
        with pytest.raises(RuleError, match="needs formulation='gradient', not 'relevance'"):
            Composite({nn.ReLU: rule}).register(nn.ReLU())
        with pytest.raises(RuleError, match="fits ReLU only"):
            Composite({nn.GELU: rule}, formulation="gradient").register(nn.GELU())
    with pytest.raises(ValueError, match="beta must be above 0"):
        ReLUBetaSmooth(0.0)
