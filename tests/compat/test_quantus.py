"""The function that Quantus calls to explain."""

import numpy as np
import pytest
import torch
from stand_ins import stand_in_for_torchvision
from torch import nn

from lxt_compose import attribute, compat


def net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*(make() for make in layers)).eval()


IMAGES = (lambda: nn.Conv2d(3, 4, 3), nn.ReLU, nn.Flatten, lambda: nn.Linear(144, 5))
SERIES = (lambda: nn.Conv1d(3, 4, 3), nn.ReLU, nn.Flatten, lambda: nn.Linear(24, 5))
TABLES = (lambda: nn.Linear(7, 5),)


@pytest.mark.parametrize(
    ("layers", "shape", "expected"),
    [(IMAGES, (2, 3, 8, 8), (2, 1, 8, 8)), (SERIES, (2, 3, 8), (2, 1, 8)), (TABLES, (2, 7), (2, 7))],
)
def test_arrays_come_in_and_out_in_the_shape_of_quantus(layers, shape, expected):
    model, x = net(*layers), np.random.default_rng(0).normal(size=shape)
    found = compat.quantus_explain("epsilon_plus")(model, x, np.array([1, 4]), device="cpu", method="any")
    assert isinstance(found, np.ndarray)
    assert found.shape == expected
    relevance = attribute(model, torch.tensor(x).float(), target=[1, 4], composite="epsilon_plus").relevance
    np.testing.assert_allclose(found.reshape(2, -1).sum(1), relevance.flatten(1).sum(1), rtol=1e-5)


def test_its_metrics_take_it():
    stand_in_for_torchvision()
    quantus = pytest.importorskip("quantus", reason="Quantus is not installed: pip install quantus")
    model, x = net(*IMAGES), np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype("float32")
    metric = quantus.Sparseness(disable_warnings=True, display_progressbar=False)
    scores = metric(
        model=model, x_batch=x, y_batch=np.array([1, 4]), explain_func=compat.quantus_explain("epsilon_plus")
    )
    assert len(scores) == 2
    assert all(0 <= score <= 1 for score in scores)
