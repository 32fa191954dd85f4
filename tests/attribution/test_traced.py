"""A model's attribution as one graph: the eager numbers bit for bit, refused where it does not fit, saved, compiled."""

import subprocess
import sys

import pytest
import small_transformers as small
import torch
from support import Fn, Transformer, cnn, fingerprint, mlp
from torch import nn

from lxt_compose import Composite, Epsilon, Gamma, TracedAttribution, TraceError, attribute, presets
from lxt_compose.errors import NotFiniteError


def image(samples=2, seed=0):
    return torch.randn(samples, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def text(model, samples=3, length=6, **masks):
    ids = small.ids(samples, length)
    inputs = {"input_ids": ids}
    if masks.get("mask"):
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["attention_mask"][0, -2:] = 0
    if masks.get("decoder"):
        inputs["decoder_input_ids"] = ids[:, :3]
    return inputs


def assert_equal(found, expected):
    assert torch.equal(found.output, expected.output)
    for name, relevance in expected.relevances.items():
        assert torch.equal(found.relevances[name], relevance), name
    assert found.latent.keys() == expected.latent.keys()
    for name, relevance in expected.latent.items():
        assert torch.equal(found.latent[name], relevance), name


PRESETS = {"epsilon_gamma_box": {"low": -9.0, "high": 9.0}}


@pytest.mark.parametrize("name", presets.available())
def test_every_preset_gives_the_eager_numbers_for_other_inputs_and_targets(name):
    composite, model = presets.get(name, **PRESETS.get(name, {})), cnn()
    before = fingerprint(model)
    traced = composite.trace(model, image(), target=0, layers="3")
    for seed, target in ((1, 2), (2, [1, 0])):
        x = image(seed=seed).abs() if seed == 1 else image(seed=seed)
        expected = attribute(model, x, composite=composite, target=target, layers="3")
        assert_equal(traced.attribute(x, target=target), expected)
        found = traced(x, target=target)
        assert torch.equal(found.relevance, expected.relevance)
        assert torch.equal(found.layers["3"], expected.latent["3"])
    assert fingerprint(model) == before
    assert traced.report.complete == expected.report.complete


MODELS = {
    "bert": (small.bert, {}), "bert, padded": (small.bert, {"mask": True}),
    "llama, padded": (small.llama, {"mask": True}),
    "gpt2": (small.gpt2, {}), "t5": (small.t5, {"decoder": True}),
}  # fmt: skip


@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp", "res_lrp", "relp"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_by_their_ids(name, preset):
    make, masks = MODELS[name]
    model = make()
    inputs = text(model, **masks)
    traced = presets.get(preset).trace(model, inputs)
    inputs["input_ids"] = inputs["input_ids"].flip(0)
    assert_equal(traced.attribute(inputs), attribute(model, inputs, composite=preset))


@pytest.mark.parametrize("name", ["bert, padded", "llama, padded", "t5"])
def test_one_graph_for_any_batch_and_length(name):
    make, masks = MODELS[name]
    model = make()
    traced = presets.attnlrp().trace(model, text(model, **masks), dynamic=True)
    for samples, length in ((2, 4), (5, 9), (3, 6)):
        inputs = text(model, samples, length, **masks)
        assert_equal(traced.attribute(inputs), attribute(model, inputs))
    assert traced.notes[-1] == "one graph for any size of batch, token"
    inputs = text(model, 1, 5, **masks)
    assert_equal(traced.attribute(inputs), attribute(model, inputs))
    assert "graphs of their own for 1 shapes" in traced.notes[-1]


def test_where_there_is_no_graph_for_any_size_each_shape_has_its_own():
    # the number of samples becomes a number of Python
    model = Fn(lambda m, x: m.a(x) * (2.0 if x.shape[0] in {2, 3} else 1.0), a=nn.Linear(6, 2)).double().eval()
    traced = Composite().trace(model, torch.randn(2, 6).double(), dynamic="batch")
    for samples in (2, 4):
        x = torch.randn(samples, 6).double()
        assert_equal(traced.attribute(x), attribute(model, x, composite=Composite()))


TARGETS = {
    "index": (1, 2), "list": ([0, 1, 2], [2, 2, 0]), "arg-max": (None, None), "pair": ((0, 1), (2, 0)),
    "others": ((0, "others"), (2, "others")), "several": ({"a": 0, "b": 2}, {"a": 1, "b": 1}),
    "pairs": (torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.tensor([[1, 1], [0, 2], [2, 1]])),
}  # fmt: skip


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_all_kinds_are_chosen_in_the_graph(kind):
    model, x = mlp(), torch.randn(3, 6).double()
    first, second = TARGETS[kind]
    traced = Composite().trace(model, x, target=first)
    for target in (first, second):
        x = torch.randn(3, 6).double()
        found, expected = traced.attribute(x, target=target), attribute(model, x, composite=Composite(), target=target)
        assert_equal(found, expected)
        assert torch.equal(found.target, expected.target)
        assert found.target_names == expected.target_names
    assert torch.equal(traced(x).relevance, attribute(model, x, composite=Composite(), target=first).relevance)


def test_a_function_as_target_is_a_part_of_the_graph():
    model, x = mlp(), torch.randn(3, 6).double()
    target = lambda output: output.softmax(-1)[:, 1]  # noqa: E731
    traced = Composite().trace(model, x, target=target)
    assert_equal(traced.attribute(x), attribute(model, x, composite=Composite(), target=target))


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_model_as_they_are():
    model, x = mlp(), torch.randn(3, 6).double()
    traced = Composite({nn.Linear: Gamma()}).trace(model, x)
    model.load_state_dict({name: 2 - value for name, value in model.state_dict().items()})
    assert_equal(traced.attribute(x), attribute(model, x, composite=Composite({nn.Linear: Gamma()})))
    kept = {id(p) for p in model.parameters()} & {id(p) for p in traced._main.program.graph.parameters()}
    assert len(kept) == 4


def test_it_runs_without_hooks_modes_or_registration():
    model, x = mlp(), torch.randn(3, 6).double()
    traced = Composite().trace(model, x)
    before, ran = fingerprint(model), []
    model.forward = lambda x: ran.append(x)
    del model.forward
    with Composite({nn.Linear: Epsilon(1.0)}).register(model):
        assert torch.equal(traced(x).relevance, attribute_elsewhere(x))
    assert fingerprint(model) == before
    assert not ran


def attribute_elsewhere(x):
    return attribute(mlp_like(), x, composite=Composite()).relevance


def mlp_like():
    torch.manual_seed(0)
    return mlp()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_a_registration_is_traced_while_it_is_active_and_counts_nothing():
    model, x = mlp(), torch.randn(3, 6).double()
    composite = Composite({nn.Linear: Epsilon(0.1)})
    with composite.register(model) as registration:
        traced = registration.trace(x, target=1)
        assert not registration.session.tally.executed
        with pytest.raises(TraceError, match="without target functions"):
            registration.trace(x, target=lambda output: output[:, 0])
    assert_equal(traced.attribute(x), attribute(model, x, composite=composite, target=1))


# ---- what does not fit -----------------------------------------------------------------------------------------------


REFUSED = {
    "torch.float32 on cpu with 2 dimensions instead of a tensor of torch.float64": lambda t, x: t(x.float()),
    "inputs are not like those of the example": lambda t, x: t((x, x)),
    r"one shape, input: \[3, 6\], but was given input: \[4, 6\]; trace it with dynamic=True": lambda t, x: t(
        torch.cat([x, x[:1]])
    ),
    "of another kind than the example's": lambda t, x: t(x, target=(0, 1)),
    "the model .Sequential. is in train mode now; call model.eval.. first": lambda t, x: t(t.model.train() and x),
    "parameters of 'fc1' .Linear. were exchanged .weight.": lambda t, x: (
        setattr(t.model.fc1, "weight", nn.Parameter(torch.ones(8, 6).double())), t(x)
    ),
    "modules of the model .Sequential. were added": lambda t, x: (t.model.add_module("adapter", nn.ReLU()), t(x)),
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_a_call_that_does_not_fit_is_refused_with_what_to_do(said):
    x = torch.randn(3, 6).double()
    traced = Composite().trace(mlp(), x, target=1)
    with pytest.raises(TraceError, match=said):
        REFUSED[said](traced, x)


def test_indices_out_of_range_and_values_that_are_not_finite_are_named_as_without_a_graph():
    model, x = mlp(), torch.randn(3, 6).double()
    traced = Composite().trace(model, x, target=1)
    with pytest.raises(ValueError, match="target 3 is out of range: the model has 3 outputs"):
        traced(x, target=3)
    with torch.no_grad():
        model.fc1.bias.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="'fc1'"):
        traced.attribute(x)


CANNOT = {
    "random numbers": lambda: Fn(lambda m, x: m.a(x) + torch.rand_like(x[:, :2]), a=nn.Linear(6, 2)),
    "cannot be written down as one graph": lambda: Fn(
        lambda m, x: m.a(x) if x.sum() > 0 else -m.a(x), a=nn.Linear(6, 2)
    ),
}


@pytest.mark.parametrize("said", CANNOT)
def test_a_model_that_is_no_graph_is_refused_with_the_reason(said):
    model, x = CANNOT[said]().double().eval(), torch.randn(3, 6).double()
    with pytest.raises(TraceError, match=said):
        Composite().trace(model, x)
    with pytest.raises(TraceError, match=said):
        attribute(model, x, composite=Composite(), traced=True)


def test_a_cache_among_the_arguments_is_refused():
    model = Fn(lambda m, x, cache: m.a(x), a=nn.Linear(6, 2)).double().eval()
    with pytest.raises(TraceError, match="an argument of type Cache may be changed"):
        Composite().trace(model, (torch.randn(3, 6).double(), type("Cache", (), {})()))


# ---- files, compilers, derivatives -----------------------------------------------------------------------------------


SAVED = pytest.mark.skipif(torch.__version__ < (2, 5), reason=f"torch {torch.__version__} cannot save graphs")


@SAVED
def test_a_file_runs_in_a_process_that_does_not_have_this_library(tmp_path):
    model, x = cnn(), image()
    traced = presets.epsilon_plus_flat().trace(model, x, target=1, dynamic=True)
    expected = attribute(model, image(5, seed=4), composite="epsilon_plus_flat", target=2)
    traced.save(tmp_path / "graph.pt2")
    torch.save((image(5, seed=4), torch.full((5,), 2), expected.relevance), tmp_path / "data.pt")
    program = (
        "import sys, torch\n"
        "sys.modules['lxt_compose'] = None\n"
        "x, target, expected = torch.load('data.pt')\n"
        "found = torch.export.load('graph.pt2').module()(x, target)\n"
        "assert torch.equal(found['relevance']['input'], expected)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=100)
    saved = TracedAttribution.load(tmp_path / "graph.pt2")
    assert saved.inputs == ["input"]
    assert "Conv2d" in saved.report
    assert torch.equal(saved(image(5, seed=4), torch.full((5,), 2))["relevance"]["input"], expected.relevance)
    with pytest.raises(TraceError, match=r"takes 1 inputs .input. and 1 tensors of indices, but was given 1 and 0"):
        saved(image())


@SAVED
def test_a_file_of_a_transformer_takes_its_arguments_by_name(tmp_path):
    model = small.bert()
    inputs = text(model, mask=True)
    presets.attnlrp().trace(model, inputs, dynamic=True).save(tmp_path / "graph.pt2")
    saved, inputs = TracedAttribution.load(tmp_path / "graph.pt2"), text(model, 4, 9, mask=True)
    assert torch.equal(saved(inputs)["relevance"]["input_ids"], attribute(model, inputs).relevance)


def test_a_compiled_graph_agrees_to_rounding_and_keeps_its_checks():
    model, x = cnn(), image()
    traced = Composite({(nn.Conv2d, nn.Linear): Gamma()}).trace(model, x, target=1).compile()
    expected = attribute(model, image(seed=3), composite=Composite({(nn.Conv2d, nn.Linear): Gamma()}), target=2)
    torch.testing.assert_close(traced(image(seed=3), target=2).relevance, expected.relevance)
    with pytest.raises(TraceError, match="is for inputs of one shape"):
        traced(image(3))


@pytest.mark.parametrize("preset", ["attnlrp", "gamma_vit"])
def test_what_a_graph_gives_is_differentiated_by_inputs_and_parameters(preset):
    model, x = Transformer(size=4, blocks=1).double().eval(), torch.randn(2, 3, 4).double()
    composite = presets.get(preset)
    traced = composite.trace(model, x, target=1, differentiable=True)
    x.requires_grad_()
    found = traced(x).relevance
    torch.testing.assert_close(found.detach(), attribute(model, x, composite=composite, target=1).relevance)
    weight = model.blocks[0]["mlp"][0].weight
    slope, by_input = torch.autograd.grad(found.square().sum(), (weight, x))
    direction, values = torch.randn_like(weight), []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            weight.add_(direction, alpha=step)
        values.append(float(traced(x).relevance.detach().square().sum()))
    assert float((slope * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)
    assert by_input.abs().sum() > 0


# ---- attribute(traced=) ----------------------------------------------------------------------------------------------


def test_calls_that_are_alike_run_as_one_graph_from_the_second_on():
    model, x = mlp(), torch.randn(3, 6).double()
    results = [attribute(model, x + turn, target=turn, traced="auto", layers="fc1") for turn in range(3)]
    for turn, result in enumerate(results):
        assert_equal(result, attribute(model, x + turn, target=turn, layers="fc1"))
    assert [result.ran.partition(":")[0] for result in results] == ["eager", "one graph", "one graph"]
    assert attribute(model, x, traced="auto").ran.startswith("eager: made the second time")
    assert attribute(model, x).ran == "eager"


def test_batches_run_as_graphs_and_the_rest_eagerly():
    model, x = mlp(), torch.randn(7, 6).double()
    for expected in ("one graph; 2 of 3 batches eager: made the second time", "one graph"):
        found = attribute(model, x, batch_size=3, traced="auto", composite="epsilon")
        assert found.ran.startswith(expected)
        assert_equal(found, attribute(model, x, composite="epsilon"))
    found = attribute(model, x[:5], batch_size=3, traced="auto", composite="epsilon")
    assert found.ran.startswith("one graph; 1 of 2 batches eager")
    assert_equal(found, attribute(model, x[:5], composite="epsilon"))


def test_a_model_that_changed_gets_a_graph_of_its_own():
    model, x = mlp(), torch.randn(3, 6).double()
    assert attribute(model, x, traced=True).ran == "one graph"
    model.fc1 = nn.Linear(6, 8).double()
    assert_equal(attribute(model, x, traced=True), attribute(model, x))


def test_what_cannot_run_as_a_graph_runs_eagerly_and_says_why():
    model, x = CANNOT["cannot be written down as one graph"]().double().eval(), torch.randn(3, 6).double()
    composite = Composite()
    for _ in range(2):
        found = attribute(model, x, composite=composite, traced="auto")
        assert_equal(found, attribute(model, x, composite=composite))
    assert "cannot be written down as one graph" in found.ran
    assert "ledger" in attribute(mlp(), x, traced="auto", ledger=True).ran
    with pytest.raises(ValueError, match="traced must be False, 'auto' or True"):
        attribute(model, x, traced="yes")


def test_how_it_ran_is_kept_in_files(tmp_path):
    found = attribute(mlp(), torch.randn(3, 6).double(), traced=True)
    found.save(tmp_path / "found.pt")
    assert type(found).load(tmp_path / "found.pt").ran == "one graph"


def test_graphs_that_are_kept_do_not_keep_the_model():
    import gc
    import weakref

    model = mlp()
    attribute(model, torch.randn(3, 6).double(), traced=True)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Hidden(nn.Module):
    """A layer in a plain list, which ``model.modules()`` does not know."""

    def __init__(self):
        super().__init__()
        self.first, self.heads = nn.Linear(4, 6), [nn.Linear(6, 3)]

    def forward(self, x):
        return self.heads[0](self.first(x).relu())


def test_weights_that_the_model_does_not_hold_are_in_no_graph_that_is_kept():
    model, x = Hidden().eval(), torch.randn(2, 4)
    for _ in range(3):
        model.heads[0] = nn.Linear(6, 3)
        found = attribute(model, x, target=1, traced="auto")
        torch.testing.assert_close(found.relevance, attribute(model, x, target=1).relevance, rtol=0, atol=0)
    assert "does not hold as its own" in found.ran
    with pytest.raises(TraceError, match="make their modules its submodules"):
        attribute(model, x, target=1, traced=True)
    traced = presets.attnlrp().trace(model, x, target=1)
    assert "does not hold as its own" in traced.notes[-1]
    with torch.no_grad():
        model.heads[0].weight.mul_(-2)  # the very tensor is in the graph
    torch.testing.assert_close(traced(x).relevance, attribute(model, x, target=1).relevance, rtol=0, atol=0)
