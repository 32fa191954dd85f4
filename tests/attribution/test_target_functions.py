"""Target functions run under the rules, as a part of the model."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon, UncoveredError, attribute, check_conservation, with_target

V = torch.tensor([0.5, -0.1, 0.7, 0.5], dtype=torch.float64)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).double().eval()


class Tail(nn.Module):
    """The same by hand: the function of the output in the forward pass of a model."""

    def __init__(self, model, function):
        super().__init__()
        self.inner, self.function = model, function

    def forward(self, x):
        return self.function(self.inner(x))[:, None]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slot):
        return 2 * slot


def looped(output):
    total = 0.0
    for index, row in enumerate(output.unbind(1)):
        total = total + index * row * row
    return total


FUNCTIONS = {
    "cosine": lambda o: (F.normalize(o, dim=-1) * V).sum(-1),
    "cosine_similarity": lambda o: F.cosine_similarity(o, V.expand_as(o), dim=-1),
    "softmax": lambda o: o.softmax(-1)[:, 0],
    "log_softmax": lambda o: o.log_softmax(-1)[:, 1],
    "norm": lambda o: o.norm(dim=-1),
    "product": lambda o: o[:, 0] * o[:, 1],
    "loop": looped,
    "cross_entropy": lambda o: F.cross_entropy(o, torch.tensor([1, 2, 0]), reduction="none"),
}


@pytest.mark.parametrize("composite", ["attnlrp", Composite()], ids=["gradient", "relevance"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_target_function_is_a_part_of_the_model(name, composite):
    model, x = net(), torch.randn(3, 6, dtype=torch.float64)
    found = attribute(model, x, target=FUNCTIONS[name], composite=composite)
    want = attribute(Tail(model, FUNCTIONS[name]).eval(), x, target=[0, 0, 0], composite=composite)
    torch.testing.assert_close(found.relevance, want.relevance, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.output, want.output, rtol=0, atol=0)
    assert any(row.path == "(target)" for row in found.report.rows)


def test_the_relevance_of_a_cosine_sums_to_it():
    model = nn.Linear(6, 4, bias=False).double().eval()
    found = attribute(model, torch.randn(3, 6, dtype=torch.float64), target=FUNCTIONS["cosine"], ledger=True)
    torch.testing.assert_close(found.relevance.sum(1), found.output, rtol=1e-5, atol=1e-9)
    assert found.report.complete
    assert "(target)" in str(found.report)


def test_names_of_modules_are_those_of_the_model():
    model, x = net(), torch.randn(3, 6, dtype=torch.float64)
    composite = Composite({"2": Epsilon(0.1), "?": Epsilon(), torch.softmax: Epsilon()})
    found = attribute(model, x, target=FUNCTIONS["softmax"], composite=composite, layers="0")
    assert {row.path for row in found.report.rows} >= {"2", "(target)"}
    assert list(found.latent) == ["0"]


def test_strict_looks_into_target_functions():
    def target(output):
        return Doubled.apply(output)[:, 0]

    composite = Composite(strict=True)
    with pytest.raises(UncoveredError, match=r"Doubled.apply in '\(target\)'"):
        attribute(net(), torch.randn(2, 6, dtype=torch.float64), target=target, composite=composite)
    assert not attribute(net(), torch.randn(2, 6, dtype=torch.float64), target=target).report.complete


def test_what_a_hook_kept_is_a_target():
    model, kept = net(), {}
    model[0].register_forward_hook(lambda *given: kept.update(found=given[2]))
    x = torch.randn(2, 6, dtype=torch.float64)
    found = attribute(model, x, target=lambda _: kept["found"][:, 3])
    torch.testing.assert_close(found.relevance, x * model[0].weight[3], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("target", [lambda o: o.detach()[:, 0], lambda o: torch.ones(len(o))], ids=["detached", "one"])
def test_a_target_that_depends_on_nothing_raises(target):
    with pytest.raises(ValueError, match="does not depend on the model's output"):
        attribute(net(), torch.randn(2, 6, dtype=torch.float64), target=target)


def test_errors_of_a_target_function_are_its_own():
    with pytest.raises(KeyError, match="nothing"):
        attribute(net(), torch.randn(2, 6, dtype=torch.float64), target=lambda o: {}["nothing"])


def test_with_target_by_hand():
    model, x = net(), torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    whole = with_target(model, FUNCTIONS["softmax"])
    with Composite().register(whole) as registration, check_conservation(registration):
        y = whole(x)
        y.backward(y.detach())
    found = attribute(model, x.detach(), target=FUNCTIONS["softmax"], composite=Composite())
    torch.testing.assert_close(x.grad, found.relevance, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_with_target_refuses():
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module"):
        with_target(len, len)
    with pytest.raises(TypeError, match="takes a function"):
        with_target(net(), 3)
