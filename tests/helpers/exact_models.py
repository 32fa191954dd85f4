"""Models whose relevance is input x gradient, and what the tests of the runtime share."""

import pytest
import torch
from support import FORMULATIONS, assert_close, attribute, exact, input_times_gradient
from torch import nn

both_formulations = pytest.mark.parametrize("formulation", FORMULATIONS)


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def linear(inputs=6, outputs=6, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs).double()


def inputs(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_is_input_times_gradient(model, x, formulation, rules=(), index=0):
    assert_close(attribute(model, x, exact(formulation, rules), index), input_times_gradient(model, x, index))
