"""Inputs of any structure, each against the gradient times the input of a net that is linear in them."""

import dataclasses
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from lxt_compose import Composite, attribute, baselines, evaluate, register_container


class OfList(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2, bias=False), nn.Linear(5, 2, bias=False)

    def forward(self, xs):
        return self.a(xs[0]) + self.b(xs[1])


class OfNested(OfList):
    def forward(self, scale, parts):
        return scale * super().forward((parts["first"], parts["rest"][0]))


class OfOneDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(9, 3), nn.Linear(3, 2, bias=False)

    def forward(self, batch):
        return {"found": self.linear(self.embedding(batch["input_ids"]).sum(1))}


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2, bias=False)

    def forward(self, x, edge_index):
        source, target = edge_index
        return torch.zeros(len(x), 2).index_add(0, target, self.linear(x)[source])


EXACT = Composite()


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    "wrap", [lambda xs: (xs,), lambda xs: xs, lambda xs: {"xs": xs}], ids=["tuple", "list", "name"]
)
def test_a_list(wrap, size):
    model, xs = OfList().eval(), [torch.randn(2, 3), torch.randn(2, 5)]
    found = attribute(model, wrap(xs), target=1, composite=EXACT, batch_size=size)
    assert list(found.relevances) == ["xs[0]", "xs[1]"]
    for layer, x, relevance in zip((model.a, model.b), xs, found.relevances.values(), strict=True):
        torch.testing.assert_close(relevance, x * layer.weight[1], rtol=1e-4, atol=1e-5)


def test_nested_inputs_and_numbers():
    model, first, rest = OfNested().eval(), torch.randn(2, 3), torch.randn(2, 5)
    found = attribute(model, (2.0, {"first": first, "rest": [rest]}), target=0, composite=EXACT)
    assert list(found.relevances) == ["parts.first", "parts.rest[0]"]
    torch.testing.assert_close(found.relevances["parts.first"], 2 * first * model.a.weight[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: {"batch": x}], ids=["itself", "tuple", "name"])
def test_a_model_that_takes_one_dict(wrap):
    model, ids = OfOneDict().eval(), torch.tensor([[3, 4, 5]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones(1, 3)}
    found = attribute(model, wrap(inputs), target=lambda output: output["found"][:, 0], composite=EXACT)
    torch.testing.assert_close(found.relevance, model.embedding(ids) * model.linear.weight[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [lambda o: o[3, 1], lambda o: o[3:4, 1]], ids=["a number", "one place"])
def test_a_graph(target):
    model, x, edges = Graph().eval(), torch.randn(7, 3), torch.tensor([[0, 1, 2, 3], [1, 3, 3, 4]])
    found = attribute(model, (x, edges), target=target, composite=EXACT)
    want = torch.zeros(7, 3)
    want[[1, 2]] = x[[1, 2]] * model.linear.weight[1]
    torch.testing.assert_close(found.relevance, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays(dtype):
    model, x = nn.Linear(4, 5).eval(), np.random.default_rng(0).normal(size=(2, 4)).astype(dtype)
    found = attribute(model, x, target=np.array([0, 3]), composite=EXACT)
    want = attribute(model, torch.tensor(x, dtype=torch.float32), target=[0, 3], composite=EXACT)
    torch.testing.assert_close(found.relevance, want.relevance, rtol=0, atol=0)


class Filling(nn.Module):
    """Fills what it is given, as language models fill caches; and changes its ids in place."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 3)

    def forward(self, input_ids, cache):
        cache.kept.append(self.embedding(input_ids))
        input_ids.zero_()
        return torch.cat(cache.kept, 1).sum(1)


class Cache:
    def __init__(self):
        self.kept = [torch.ones(1, 2, 3)]


def test_what_a_model_fills_is_copied_for_each_pass():
    model, inputs = Filling().eval(), {"input_ids": torch.tensor([[3, 8, 5]]), "cache": Cache()}
    first, second = (attribute(model, inputs, target=1) for _ in range(2))
    torch.testing.assert_close(first.output, second.output, rtol=0, atol=0)
    want = model.embedding(torch.tensor([3, 8, 5]))[:, 1]
    torch.testing.assert_close(baselines.gradient_x_input(model, inputs, target=1), want[None].detach())
    torch.testing.assert_close(evaluate.leave_one_out(model, inputs, target=1), want[None].detach())
    assert len(inputs["cache"].kept) == 1
    assert inputs["input_ids"].tolist() == [[3, 8, 5]]


class Fields:
    """A container of a library that nobody told of."""

    def __init__(self, a, b):
        self.a, self.b = a, b


@dataclasses.dataclass
class Declared:
    a: torch.Tensor
    b: torch.Tensor


class OfFields(OfList):
    def forward(self, batch):
        return super().forward((batch["a"], batch["b"]) if isinstance(batch, dict) else (batch.a, batch.b))


def _registered(**values):
    register_container(Fields, vars)
    return Fields(**values)


@pytest.mark.parametrize("kind", [OrderedDict, Declared, _registered, lambda **values: defaultdict(list, values)])
@pytest.mark.parametrize("wrap", [lambda batch: (batch,), lambda batch: {"batch": batch}])
def test_containers_of_every_kind(kind, wrap):
    model, a, b = OfFields().eval(), torch.randn(2, 3), torch.randn(2, 5)
    found = attribute(model, wrap(kind(a=a, b=b)), target=1)
    names = ("a", "b") if "a" in found.relevances else ("batch.a", "batch.b")
    for name, x, layer in zip(names, (a, b), (model.a, model.b), strict=True):
        torch.testing.assert_close(found.relevances[name], x * layer.weight[1].detach())


class ChangesAll(nn.Module):
    """Changes whatever it is given in place, and keeps what it has seen in a cache."""

    def forward(self, x, scale_mask, cache):
        cache.kept.append(x.mul_(scale_mask.mul_(0.5)))
        return sum(cache.kept)


def test_nothing_of_the_users_is_changed():
    x, mask, cache = torch.randn(1, 2, 3), torch.ones(1, 2, 3), Cache()
    inputs = {"x": x.clone(), "scale_mask": mask, "cache": cache}
    for _ in range(2):
        found = attribute(ChangesAll(), inputs, target=lambda output: output.sum((1, 2)))
        torch.testing.assert_close(found.relevance, x / 2)
        assert torch.equal(inputs["x"], x)
        assert bool((mask == 1).all())
        assert len(cache.kept) == 1


def test_arrays_as_they_lie_in_memory():
    model, x = nn.Linear(4, 2).eval(), np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    want = attribute(model, torch.tensor(x), target=1).relevance
    for array in (x[:, ::-1].copy()[:, ::-1], x.astype(">f4"), np.asfortranarray(x)):
        torch.testing.assert_close(attribute(model, array, target=1).relevance, want)


def _packed():
    return (nn.utils.rnn.pack_sequence([torch.ones(3, 4), torch.ones(2, 4)]),)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)]), "to_padded_tensor"),
        (lambda: torch.nested.nested_tensor([torch.ones(2, 4)], layout=torch.jagged), "to_padded_tensor"),
        (_packed, "the padded tensor"),
        (lambda: torch.ones(2, 4, dtype=torch.complex64), "view_as_real"),
        (lambda: (object(),), r"register_container\(object"),
        (lambda: torch.ones(4), "name theirs: dims="),
    ],
)
def test_what_cannot_be_explained_says_what_can(make, said):
    with pytest.raises((TypeError, ValueError), match=said):
        attribute(nn.Linear(4, 2).eval(), make(), target=1)


class Opaque:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("make", [Opaque, lambda y: torch.complex(y, y)])
def test_outputs_that_are_not_known_are_named(make):
    class Net(nn.Linear):
        def forward(self, x):
            return make(super().forward(x))

    with pytest.raises(TypeError, match="are not found, or not floating point numbers"):
        attribute(Net(4, 2).eval(), torch.ones(1, 4), target=1)


@pytest.mark.parametrize(
    ("model", "shape", "dims"),
    [
        (nn.Linear(4, 3, bias=False), (4,), "feature"),
        (nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), nn.Flatten(0), nn.Linear(27, 3, bias=False)), (2, 4, 4), None),
    ],
)
@pytest.mark.parametrize("target", [1, None, (0, 2), {"a": 0, "b": 1}])
def test_one_sample_without_a_dimension_for_it(model, shape, dims, target):
    x = torch.randn(shape)
    found = attribute(model.eval(), x, target=target, dims=dims or "channel height width")
    torch.testing.assert_close(
        found.relevance.flatten(-len(shape)).sum(-1).flatten(), found.output, rtol=1e-4, atol=1e-5
    )


class Held:
    def __init__(self, x):
        self.x = x


class Adds(nn.Module):
    def forward(self, x, other):
        return x + (other.x if isinstance(other, Held) else other)


class Biased(nn.Module):
    def forward(self, x, position_bias, attention_mask):
        return x * attention_mask + position_bias


class Cuts(nn.Module):
    """Lengths as parts of the longest, as libraries for speech give them."""

    def forward(self, x, wav_lens):
        return torch.stack([row * (torch.arange(3) < int(part * 3)) for row, part in zip(x, wav_lens, strict=True)])


def test_numbers_that_are_held_constant_are_named():
    x = torch.randn(2, 3)
    found = attribute(Adds(), (x, Held(torch.ones(2, 3))), target=1)
    assert found.report.notes == (
        "tensors in other are held constant; register_container(Held, vars) makes them inputs",
    )
    found = attribute(Biased(), (x, torch.ones(2, 3), torch.ones(2, 3)), target=1)
    assert found.report.notes == (
        "position_bias is held constant: by its name it is a bias, a label, a cache, or tells of lengths or edges",
    )
    found = attribute(Cuts(), (x, torch.tensor([1.0, 0.7])), target=1)
    assert found.report.complete
    assert found.report.notes == (
        "wav_lens is held constant: by its name it is a bias, a label, a cache, or tells of lengths or edges",
    )
    assert attribute(Adds(), (x, torch.ones(2, 3)), target=1).report.notes == ()
