"""Several targets for each sample: one row for each, equal to what it gives alone, from a single forward pass."""

import pytest
import torch
from support import FORMULATIONS, Fn, assert_close, mlp
from torch import nn
from torch.utils.checkpoint import checkpoint

from lxt_compose import Attribution, Composite, Gamma, attribute, baselines, evaluate, presets

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
both = pytest.mark.parametrize("formulation", FORMULATIONS)


class Counting(nn.Sequential):
    passes = 0

    def forward(self, x):
        self.passes += 1
        return super().forward(x)


def model():
    torch.manual_seed(0)
    return Counting(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double().eval()


def probability(output):
    return output.softmax(-1)[:, 2]


TARGETS = {"cat": 0, "dog": (1, 3), "rest": (2, "others"), "best": None, "probability": probability, "own": [1, 2, 4]}


@both
@pytest.mark.parametrize("size", [None, 1, 2])
def test_each_row_is_what_its_target_alone_gives(formulation, size):
    composite = Composite({nn.Linear: Gamma()}, formulation=formulation)
    options = {"composite": composite, "layers": ["0", "2:input"], "ledger": True}
    found = attribute(model(), X, target=TARGETS, batch_size=size, **options)
    assert len(found) == 18
    for turn, (name, target) in enumerate(TARGETS.items()):
        alone = attribute(model(), X, target=target, **options)
        rows = slice(turn, None, len(TARGETS))
        assert_close(found.relevance[rows], alone.relevance)
        assert_close(found.scores[rows], alone.scores)
        assert_close(found.output[rows], alone.output)
        for layer in alone.latent:
            assert_close(found.latent[layer][rows], alone.latent[layer])
        for kind in (*alone.ledger.absorbed, "bias"):
            assert_close(found.ledger.absorbed[kind][rows], alone.ledger.absorbed[kind])
        assert_close(found.ledger.inputs[rows], alone.ledger.inputs)
        assert_close(found.ledger.seed[rows], alone.ledger.seed)
        assert [found.title_of(row) for row in range(18)[rows]] == [f"sample {i}, {name}" for i in range(3)]
        assert torch.equal(next(iter(found.inputs.values()))[rows], X)
    assert found.ledger.unaccounted < 1e-12
    assert found.target is None  # they are of several kinds
    calls = {entry.calls for entry in found.ledger.entries if entry.path == "0"}
    assert calls == {{None: 1, 1: 3, 2: 2}[size]}


def test_one_forward_pass():
    net = model()
    attribute(net, X, target=TARGETS, dims="batch feature")
    assert net.passes == 1


SEVERAL = {
    "indices": ([0, 3, 3], [0, 3, 3], ("0", "3", "3")),
    "tensor": (torch.tensor([4, 1]), [4, 1], ("4", "1")),
    "pairs": ([(0, 1), (2, "others"), (None, "others")], [(0, 1), (2, "others"), (None, "others")],
              ("0 - 1", "2 - others", "arg-max - others")),
    "mixed": ([None, 2, probability], [None, 2, probability], ("arg-max", "2", "probability")),
}  # fmt: skip


@pytest.mark.parametrize("what", SEVERAL)
def test_a_list_for_a_single_sample(what):
    target, each, names = SEVERAL[what]
    found = attribute(model(), X[:1], target=target, ledger=True)
    assert found.target_names == names
    assert [found.title_of(row) for row in range(len(found))] == list(names)
    assert_close(found.relevance, torch.cat([attribute(model(), X[:1], target=t).relevance for t in each]))
    assert (found.target is None) == (what == "mixed")
    if what == "indices":
        assert found.target.tolist() == [0, 3, 3]


def test_lists_that_keep_their_meaning():
    one = attribute(model(), X[:1], target=[3])
    assert one.target_names == ()
    assert one.target.tolist() == [3]
    assert attribute(model(), X, target=[0, 1, 2]).relevance.shape == (3, 4)
    assert attribute(model(), X[:1], target=[(0, 1)]).target.tolist() == [[0, 1]]
    assert attribute(model(), X[:1], target=torch.tensor([[0, 1]])).target.tolist() == [[0, 1]]


WRONG = {
    "too few": (
        [0, 1],
        ValueError,
        r"has shape \[2\], but there are 3 samples; .* a list of several targets for a single",
    ),
    "a table": (torch.zeros(3, 4).long(), ValueError, r"shape \[3, 4\] could be meant in several ways; .* dictionary"),
    "nothing": ({}, ValueError, "a dictionary of targets holds one for each name"),
    "nested": ({"a": {"b": 1}}, ValueError, "a dictionary of targets holds one for each name"),
    "no index": ({"a": 1, "b": 1.5}, TypeError, "1.5 of type float is no target"),
    "out of range": ({"a": 1, "b": 9}, ValueError, "target 9 is out of range"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_refused(what):
    target, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        attribute(model(), X, target=target)


@both
def test_tokens_of_several_targets(formulation):
    torch.manual_seed(0)
    net = Fn(lambda self, input_ids: self.head(self.table(input_ids).tanh().mean(1)),
             table=nn.Embedding(9, 4), head=nn.Linear(4, 3)).double().eval()  # fmt: skip
    ids = torch.tensor([[1, 5, 2]])
    composite = Composite(formulation=formulation)
    found = attribute(net, {"input_ids": ids}, target=[0, 1, 2], composite=composite)
    assert found.relevance.shape == (3, 3, 4)
    assert_close(found.relevance[1:2], attribute(net, {"input_ids": ids}, target=1, composite=composite).relevance)
    assert found.inputs["input_ids"].shape == (3, 3)
    page = found.heatmap(["a", "b", "c"])
    assert [text.title for text in page.sentences] == ["0", "1", "2"]


def test_nodes_that_have_no_samples():
    torch.manual_seed(0)
    net = Fn(lambda self, x: self.head(x.tanh()).mean(0)[None], head=nn.Linear(4, 3)).double().eval()
    found = attribute(net, X, target=[0, 2], dims="node feature")
    assert found.relevance.shape == (2, 3, 4)
    assert found.dims["args0"] == ("batch", "node", "feature")
    assert found.scores.shape == (2, 3)
    assert_close(found.relevance[1], attribute(net, X, target=2, dims="node feature").relevance)


def test_checkpointed_blocks():
    blocks = Fn(lambda self, x: self.head(checkpoint(self.body, x, use_reentrant=False)),
                body=nn.Sequential(nn.Linear(4, 5), nn.Tanh()), head=nn.Linear(5, 3)).double().eval()  # fmt: skip
    found = attribute(blocks, X, target={"a": 0, "b": 2}, ledger=True)
    for turn, target in enumerate((0, 2)):
        alone = attribute(blocks, X, target=target, ledger=True)
        assert_close(found.relevance[turn::2], alone.relevance)
        assert_close(found.ledger.absorbed["bias"][turn::2], alone.ledger.absorbed["bias"])
    assert found.ledger.unaccounted < 1e-12


def test_tables_and_files(tmp_path):
    pytest.importorskip("pandas")
    found = attribute(model(), X, target={"cat": 0, "dog": 1})
    table = found.to_dataframe()
    assert table["target"].tolist()[:8] == ["cat"] * 4 + ["dog"] * 4
    assert table["sample"].tolist()[4:12] == [0] * 4 + [1] * 4
    found.save(tmp_path / "found.pt")
    again = Attribution.load(tmp_path / "found.pt")
    assert again.target_names == ("cat", "dog")
    assert again.title_of(3) == "sample 1, dog"


@pytest.mark.parametrize("target", [{"cat": 0, "dog": (1, "others"), "best": None}, {"p": probability, "cat": 0}])
def test_evaluation_follows(target):
    found = attribute(model(), X, target=target)
    curves = evaluate.flip(model(), X, found, target=target, batch_size=2)
    left = evaluate.leave_one_out(model(), X, target=target)
    for turn, one in enumerate(target.values()):
        rows = slice(turn, None, len(target))
        alone = evaluate.flip(model(), X, attribute(model(), X, target=one), target=one)
        assert_close(curves.morf[rows], alone.morf)
        assert_close(left[rows], evaluate.leave_one_out(model(), X, target=one))
        for method in (baselines.gradient_x_input, baselines.integrated_gradients):
            assert_close(method(model(), X, target=target)[rows], method(model(), X, target=one))
    steps = evaluate.randomization(model(), X, target=target)
    assert len(steps.layers) == 2


def test_targets_of_several_kinds_and_other_names_in_one_graph():
    model, x = mlp().float(), torch.randn(2, 6)
    target = {"one": 1, "sum": lambda y: y.sum(-1)}
    traced = presets.attnlrp().trace(model, x, target=target)
    expected = attribute(model, x, target=target)
    assert torch.equal(traced(x).relevance, expected.relevance)
    assert traced(x).target is None
    traced = presets.attnlrp().trace(model, x[:1], target=[1, 2])
    found, expected = traced.attribute(x[1:], target=[2, 0]), attribute(model, x[1:], target=[2, 0])
    assert torch.equal(found.relevance, expected.relevance)
    assert found.target_names == expected.target_names
