"""What modules take and return: keywords, constants, containers of all kinds."""

import dataclasses
from collections import OrderedDict, namedtuple

import pytest
import torch
from exact_models import assert_is_input_times_gradient, both_formulations, inputs, linear
from support import FORMULATIONS, Fn, assert_close, attribute, exact, input_times_gradient
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon


@both_formulations
def test_relevance_reaches_inputs_given_by_keyword(formulation):
    """Relevance reaches x in ``layer(input=x)``."""
    model = Fn(lambda self, x: self.layer(input=F.relu(input=x)), layer=linear())
    assert_is_input_times_gradient(model, inputs(4, 6), formulation)


Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Plain:
    first: torch.Tensor
    second: torch.Tensor
    other: str = "kept"


@dataclasses.dataclass(frozen=True)
class Frozen:
    first: torch.Tensor
    second: torch.Tensor


OUTPUTS = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"first": a, "second": b},
    "ordered dict": lambda a, b: OrderedDict(first=a, second=b),
    "named tuple": Pair,
    "dataclass": Plain,
    "frozen dataclass": Frozen,
    "nested": lambda a, b: ({"first": [a]}, (Plain(b, b.detach()), None, "text", 3)),
}


def leaves(tree):
    """The tensors in a container, by a walk written independently of the library."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, dict):
        tree = [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, (list, tuple)) else []


def skeleton(tree):
    """The types in a container, and all in it that is no tensor."""
    if isinstance(tree, torch.Tensor):
        return "tensor"
    if dataclasses.is_dataclass(tree) and not isinstance(tree, dict):
        return type(tree), [skeleton(getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    if isinstance(tree, dict):
        return type(tree), [(key, skeleton(value)) for key, value in tree.items()]
    return (type(tree), [skeleton(part) for part in tree]) if isinstance(tree, (list, tuple)) else tree


@both_formulations
@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_tensor_of_an_output_in_a_container_carries(kind, formulation):
    """All tensors of an output are wrapped, in containers of the same types; each carries its own relevance."""
    pack = OUTPUTS[kind]
    block = Fn(lambda self, x: pack(self.a(x), self.b(x)), a=linear(seed=3), b=linear(seed=4))
    model = Fn(lambda self, x: sum(leaves(self.block(x)), torch.zeros(6, dtype=torch.float64)), block=block)
    x, kept = inputs(4, 6), []
    block.register_forward_hook(lambda module, args, output: kept.append(output))
    assert_is_input_times_gradient(model, x, formulation, [("block", Epsilon(1e-12))])
    with_rule = kept[0]
    block(x.requires_grad_())
    assert skeleton(with_rule) == skeleton(kept[-1])
    assert all(map(torch.equal, leaves(with_rule), leaves(kept[-1])))


def test_a_model_output_of_transformers_keeps_its_type():
    """A ModelOutput stays one, with its attributes; its tensors carry relevance."""
    outputs = pytest.importorskip("transformers.modeling_outputs")
    kind = outputs.BaseModelOutputWithPooling
    block = Fn(lambda self, x: kind(last_hidden_state=self.a(x), pooler_output=self.b(x)), a=linear(), b=linear(seed=4))
    model = Fn(lambda self, x: self.block(x).last_hidden_state + self.block(x)[1], block=block)
    x, kept = inputs(4, 6), []
    block.register_forward_hook(lambda module, args, output: kept.append(output))
    for formulation in FORMULATIONS:
        assert_is_input_times_gradient(model, x, formulation, [("block", Epsilon(1e-12))])
    assert type(kept[0]) is kind
    assert kept[0].pooler_output is kept[0]["pooler_output"]
    assert kept[0].to_tuple()[1] is kept[0].pooler_output


@both_formulations
def test_an_lstm_can_be_one_unit(formulation):
    """An LSTM returns a tuple in a tuple; as one unit under Epsilon it is R = x * J^T (R / z)."""
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 5, batch_first=True).double()
    model = Fn(lambda self, x: self.lstm(x)[0][:, 0] + self.lstm(x)[1][1][0], lstm=lstm)
    x = inputs(2, 3, 4)
    found = attribute(model, x, exact(formulation, {"lstm": Epsilon(1e-12)}.items()), 0)
    assert_close(found, input_times_gradient(model, x, 0))


@both_formulations
@pytest.mark.parametrize("constant", [0, 1])
def test_one_of_the_inputs_may_be_a_constant(formulation, constant):
    """``Bilinear(x, constant)``: the constant is left alone, x gets all."""
    torch.manual_seed(0)
    other, layer = inputs(4, 6, seed=5), nn.Bilinear(6, 6, 3).double()
    model = Fn(lambda self, x: self.layer(*((other, x) if constant == 0 else (x, other))), layer=layer)
    x = inputs(4, 6)
    assert_is_input_times_gradient(model, x, formulation)
    assert_close(attribute(model, x, Composite({nn.Bilinear: Epsilon(1e-12)}, formulation=formulation), 0),
                 input_times_gradient(model, x, 0))  # fmt: skip
