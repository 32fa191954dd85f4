"""What attribute() says when it cannot: which input or target, where, and what to do; the model stays as it was."""

import re

import pytest
import torch
from support import Fn, fingerprint, make
from torch import nn

from lxt_compose import (
    AttributionError,
    Composite,
    Epsilon,
    Gamma,
    Identity,
    MatchError,
    NotFiniteError,
    RegistrationError,
    RuleError,
    attribute,
)

EXACT = Composite(formulation="gradient")


def tokens_to(classes=3):
    torch.manual_seed(0)
    model = Fn(lambda self, ids: self.head(self.embed(ids)), embed=nn.Embedding(10, 4), head=nn.Linear(4, classes))
    return model.double().eval()


class Scorer(nn.Module):
    """Answers what it is told to."""

    def __init__(self, answer):
        super().__init__()
        self.fc, self.answer = nn.Linear(6, 3).double(), answer

    def forward(self, x):
        return self.answer(self.fc(x))


X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NAN = X.clone()
NAN[2, 3] = float("nan")


def mlp():
    return make("mlp")[0]


class Overflowing(nn.Module):
    def forward(self, x):
        return x * 1e300 * 1e300


WRONG = {
    "no model": (lambda: "bert", X, {}, TypeError, r"attribute\(\) takes a torch.nn.Module, got 'bert' of type str"),
    "a list": (mlp, [[1.0]], {}, TypeError, "a tensor, a tuple of arguments or a mapping .* got list"),
    "nothing": (mlp, (), {}, TypeError, "no input can carry relevance: .* got nothing"),
    "no tensors": (mlp, {"input_ids": [1, 2]}, {}, TypeError, "got input_ids: list; let the tokenizer make tensors"),
    "booleans": (mlp, X > 0, {}, TypeError, "got input: torch.bool tensor"),
    "masks alone": (mlp, {"attention_mask": X}, {}, TypeError, "got attention_mask: torch.float64 tensor"),
    "no samples": (mlp, X[:0], {}, ValueError, r"got a tensor of shape \[0, 6\]"),
    "a number": (mlp, torch.tensor(1.0), {}, ValueError, r"counts samples, got a tensor of shape \[\]"),
    "NaN": (mlp, NAN, {}, ValueError, "the input input holds values that are not finite"),
    "ids": (mlp, X.long(), {}, AttributionError, "failed on the inputs input: .* int64 on cpu"),
    "no embedding": (
        lambda: Fn(lambda self, ids: self.w((ids > 1).double()), w=nn.Linear(6, 3).double()),
        torch.tensor([[1, 2, 3, 4, 5, 6]]), {}, AttributionError,
        r"Fn looked up no table .* by the integer input args0, nor computed with it; pass",
    ),
    "numbers of Python": (
        lambda: Fn(lambda self, ids: self.w(self.w.weight[ids.tolist()]), w=nn.Linear(6, 6).double()),
        torch.tensor([1, 2]), {}, AttributionError, r"nor computed with it but by Tensor.tolist in the model itself",
    ),
    "shape": (mlp, X[:, :5], {}, AttributionError, r"failed on the inputs input: \[4, 5\] .* mat1 and"),
    "dtype": (
        mlp, X.float(), {}, AttributionError,
        r"Sequential \(parameters: float64 on cpu\) failed on the inputs input: \[4, 6\] float32 on cpu",
    ),
    "device": (lambda: mlp().to("meta"), X, {}, AttributionError, r"float64 on meta\) failed on .* on cpu"),
    "no values": (mlp, X.to("meta"), {}, ValueError, "the input input is on the meta device: it has no values"),
    "id out of range": (tokens_to, torch.tensor([[1, 99]]), {}, AttributionError, r"args0: \[1, 2\] int64 .*: index"),
    "target too large": (mlp, X, {"target": 3}, ValueError, "target 3 is out of range: .* 3 outputs, 0 to 2"),
    "target below 0": (mlp, X, {"target": -1}, ValueError, "target -1 is out of range"),
    "one of many": (mlp, X, {"target": [0, 1, 7, 2]}, ValueError, "target 7 is out of range"),
    "second of a pair": (mlp, X, {"target": (0, 5)}, ValueError, "target 5 is out of range"),
    "too few targets": (mlp, X, {"target": [0, 1]}, ValueError, r"the target has shape \[2\], but there are 4 samples"),
    "a square of targets": (mlp, X, {"target": torch.zeros(4, 4).long()}, ValueError, r"\[4, 4\] could be meant in"),
    "true": (mlp, X, {"target": True}, TypeError, "a target cannot be True; target must be None"),
    "1.5": (mlp, X, {"target": 1.5}, TypeError, "1.5 of type float is no target"),
    "a name": (mlp, X, {"target": "cat"}, TypeError, "'cat' of type str is no target; target must be"),
    "floats": (mlp, X, {"target": torch.zeros(4)}, TypeError, "must hold class indices, got a tensor of torch.float32"),
    "three": (mlp, X, {"target": (0, 1, 2)}, ValueError, r"a pair for a contrast holds two indices, got \(0, 1, 2\)"),
    "triples": (mlp, X, {"target": [(0, 1, 2)] * 4}, ValueError, "pairs for a contrast hold two indices each"),
    "no others": (
        lambda: Scorer(lambda y: y[:, :1]), X, {"target": (0, "others")}, ValueError, "the model has one output only",
    ),
    "a function of nothing": (
        mlp, X, {"target": lambda y: torch.ones(4)}, ValueError, "does not depend on the model's output",
    ),
    "a function's sum": (
        mlp, X, {"target": lambda y: y.sum()}, ValueError, r"one number per sample, shape \[4\], got \[\]",
    ),
    "a function's number": (mlp, X, {"target": lambda y: 3}, TypeError, "must return a floating .* got int"),
    "a function's index": (mlp, X, {"target": lambda y: y.argmax(1)}, TypeError, "got torch.int64"),
    "no tensor": (lambda: Scorer(lambda y: {"y": None}), X, {}, TypeError, "no floating point tensor but dict"),
    "several": (
        lambda: Scorer(lambda y: {"a": y, "b": y}), X, {}, TypeError, r"dict\(a, b\) has no logits, .* pass target=",
    ),
    "an image": (
        lambda: Scorer(lambda y: y[..., None, None]), X, {}, ValueError,
        r"shape \[4, 3, 1, 1\]: an index alone does not say which place",
    ),
    "transposed": (lambda: Scorer(lambda y: y.mT), X, {}, ValueError, r"has shape \[3, 4\], but the first dimension"),
    "composite": (mlp, X, {"composite": 3}, TypeError, "must be a Composite or the name of a preset, got int"),
    "preset": (mlp, X, {"composite": "atnlrp"}, ValueError, "no preset is called 'atnlrp'; closest: attnlrp"),
    "name": (mlp, X, {"composite": Composite({"fc3": Epsilon()})}, MatchError, "no module matches 'fc3'"),
    "batch size": (mlp, X, {"batch_size": 0}, ValueError, "batch_size must be None or a whole number from 1 on, got 0"),
    "half a batch": (mlp, X, {"batch_size": 2.5}, ValueError, "batch_size must be .* got 2.5"),
    "NaN inside": (
        lambda: nn.Sequential(nn.Linear(6, 6), Fn(lambda self, x: x.log()), nn.Linear(6, 2)).double(), X, {},
        NotFiniteError, r"the outputs hold NaN, .* the first module that put out NaN or infinite values is '1' \(Fn\)",
    ),
    "infinite": (
        lambda: nn.Sequential(nn.Linear(6, 3), Overflowing()).double(), X, {"target": 0},
        NotFiniteError, r"what is to be explained is not finite: .* is '1' \(Overflowing\)",
    ),
    "on the way back": (
        lambda: Fn(lambda self, x: (self.fc(x) * 0).sqrt(), fc=nn.Linear(6, 2).double()), X,
        {"target": 0, "composite": Composite({torch.sqrt: Epsilon(0.0)}, formulation="gradient")},
        NotFiniteError, "the relevance is not finite; all modules put out finite values, so it came up on the way back",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name):
    build, inputs, options, error, message = WRONG[name]
    model = build()
    before = fingerprint(model) if isinstance(model, nn.Module) else None
    with pytest.raises(error, match=message):
        attribute(model, inputs, **{"composite": EXACT, **options})
    if before is not None:
        assert fingerprint(model) == before


class Failing(nn.Module):
    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("error", [ZeroDivisionError("boom"), KeyboardInterrupt()])
def test_errors_of_the_model_pass_through(error):
    model = nn.Sequential(nn.Linear(6, 3), Failing()).double()
    model[1].error = error
    before = fingerprint(model)
    with pytest.raises(type(error)):
        attribute(model, X, composite=EXACT, layers=["*"], ledger=True)
    assert fingerprint(model) == before


@pytest.mark.parametrize("step", ["choose", "layers", "backward"])
def test_no_trace_after_a_fault_in_any_step(step):
    model = mlp()
    before = fingerprint(model)

    def broken(y):
        if step == "choose":
            raise ZeroDivisionError
        y.register_hook(lambda slot: 1 / 0) if step == "backward" else None
        return y[:, 0]

    layers = ["*:input", "fc1"] if step != "layers" else ["fc1", "fc9"]
    with pytest.raises((ZeroDivisionError, MatchError)):
        attribute(model, X, composite=EXACT, target=broken, layers=layers, ledger=True, batch_size=2)
    assert fingerprint(model) == before
    assert attribute(model, X, composite=EXACT).report.complete


def test_a_rule_around_the_embedding():
    model = tokens_to()
    model.embed = nn.Sequential(nn.Embedding(10, 4), nn.Tanh()).double()
    ids = torch.tensor([[1, 2]])
    message = "args0 is looked up inside 'embed', which has Identity() as a whole, so that rule would see no relevance"
    with pytest.raises(AttributionError, match=re.escape(message)):
        attribute(model, ids, composite=Composite({"embed": Identity()}, formulation="gradient"))
    message = "looked up inside 'embed', which has Epsilon"
    with pytest.raises(AttributionError, match=message):
        attribute(model, ids, composite=Composite({"embed": Epsilon()}))


def test_a_composite_that_is_registered_already():
    model = mlp()
    with EXACT.register(model), pytest.raises(RegistrationError, match="has a composite registered already"):
        attribute(model, X)


def test_a_mask_that_leaves_nothing():
    pytest.importorskip("transformers")
    from small_transformers import gpt2, ids, masked_bert

    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1] = 0
    with pytest.raises(ValueError, match="the attention mask leaves a sample without any token"):
        attribute(gpt2(), {"input_ids": ids(), "attention_mask": mask})
    with pytest.raises(ValueError, match=r"BertForMaskedLM has shape \[3, 6, 60\]: an index alone does not say"):
        attribute(masked_bert(), ids(), target=3)
    found = attribute(masked_bert(), ids(), target=lambda output: output.logits[:, 2, 7])
    assert found.scores.shape == (3, 6)
    with pytest.raises(TypeError, match=r"BaseModelOutput.*\(last_hidden_state.*\) has no logits"):
        attribute(masked_bert().bert, ids())


def test_a_missing_package(monkeypatch):
    import sys

    model = mlp()
    found = attribute(model, X, composite=EXACT)
    for name in ("pandas", "tqdm", "matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"to_dataframe\(\) needs pandas: pip install pandas"):
        found.to_dataframe()
    with pytest.raises(ImportError, match="progress=True needs tqdm: pip install tqdm"):
        attribute(model, X, composite=EXACT, progress=True)
    with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install 'lxt-compose\[viz\]'"):
        found.heatmap().figure()
    assert "Attribution: input [4, 6]" in found._repr_html_()


# ---- what a newcomer may give ----------------------------------------------------------------------------------------


class Named(nn.Module):
    """Takes pixels by name, and others by any name if it is open."""

    def __init__(self, *, is_open):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 2, 3), nn.Linear(2, 4)
        if is_open:
            self.forward = self.forward_open

    def forward(self, pixel_values):
        return self.fc(self.conv(pixel_values).mean((2, 3)))

    def forward_open(self, pixel_values=None, **kwargs):
        return self.fc(self.conv(pixel_values.float()).mean((2, 3)))


IMAGES = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("is_open", [False, True])
def test_an_argument_of_a_wrong_name_is_named_with_the_closest(is_open):
    message = r"forward\(\) has no argument 'pixels'.*; did you mean 'pixel_values'\?"
    with pytest.raises(AttributionError, match=message):
        attribute(Named(is_open=is_open).eval(), {"pixels": IMAGES})


def test_an_argument_that_no_name_is_close_to():
    with pytest.raises(AttributionError, match="has no argument 'zzz'; it has pixel_values"):
        attribute(Named(is_open=False).eval(), {"zzz": IMAGES})


def test_images_in_a_list_are_to_be_stacked():
    message = r"takes no list of tensors; stack the 2 samples to one tensor: torch.stack\(samples\)"
    with pytest.raises(AttributionError, match=message), pytest.warns(UserWarning, match="pass attribute"):
        attribute(Named(is_open=False).eval(), [IMAGES[0], IMAGES[1]])


def test_an_input_without_elements():
    with pytest.raises(ValueError, match=r"the input has no elements, shape \[1, 0\]: a text without tokens, say"):
        attribute(tokens_to(), torch.zeros(1, 0, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_an_input_without_elements_beside_others_carries_nothing(dtype):
    """Libraries for tables hand on all kinds of columns, of which there may be none."""

    class Columns(nn.Module):
        def forward(self, columns, values):
            return torch.cat([columns.float(), values], 1)

    x = torch.randn(2, 3)
    result = attribute(Columns(), {"columns": torch.zeros(2, 0, dtype=dtype), "values": x}, target=1)
    assert list(result.relevances) == ["values"]
    assert result.relevance.sum(1).equal(x[:, 1])


@pytest.mark.parametrize("target", [(1, 1), [(1, 1)] * 4, torch.tensor([[1, 1]] * 4)])
def test_a_class_contrasted_with_itself(target):
    with pytest.raises(
        ValueError, match="in sample 0 class 1 is contrasted with itself, so there is nothing to explain"
    ):
        attribute(nn.Linear(6, 3).double(), X, target=target)


@pytest.mark.parametrize(
    ("target", "sample"),
    [([(0, 1), (2, 2), (0, 1), (0, 1)], 1), (torch.tensor([[0, 1]] * 3 + [[2, 2]]), 3)],
)
def test_a_class_contrasted_with_itself_in_one_sample(target, sample):
    with pytest.warns(UserWarning, match=f"in sample {sample} class 2 .* as in 1 of 4 samples: their relevance is 0"):
        found = attribute(nn.Linear(6, 3).double(), X, target=target)
    assert found.relevance[sample].abs().max() == 0
    assert found.relevance.flatten(1).abs().sum(1).count_nonzero() == 3


def test_the_best_class_contrasted_with_itself():
    torch.manual_seed(0)
    model = nn.Linear(6, 3).double()
    best = int(model(X)[2].argmax())
    with pytest.raises(ValueError, match=f"class {best} is contrasted with itself"):
        attribute(model, X[2:3], target=(None, best))


@pytest.mark.parametrize(("rule", "said"), [(Gamma(1e39), "gamma=1e"), (Epsilon(1e39), "epsilon=1e")])
def test_a_parameter_beyond_the_dtype_is_named(rule, said):
    composite = Composite({nn.Linear: rule})
    with pytest.raises(RuleError, match=re.escape(said) + r"\+39 is beyond the numbers of float32.*Linear computes"):
        attribute(nn.Linear(6, 3), X.float(), composite=composite)
    attribute(nn.Linear(6, 3).double(), X, composite=composite)


@pytest.mark.parametrize("formulation", ["relevance", "gradient"])
def test_half_precision_with_a_stabilizer_is_noted(formulation):
    composite = Composite(formulation=formulation)
    found = attribute(nn.Linear(6, 3).bfloat16(), X.bfloat16(), composite=composite, ledger=True)
    noted = [note for note in found.report.notes if "in bfloat16 the relevance formulation divides" in note]
    assert len(noted) == (formulation == "relevance")
    assert not attribute(nn.Linear(6, 3), X.float(), composite=composite).report.notes
