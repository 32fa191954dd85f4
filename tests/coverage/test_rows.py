"""What the coverage report says of real models: each row, before and after a forward pass, and as it is printed."""

import json
from collections import Counter

import pytest
import torch
from support import FORMULATIONS, Fn, Residual, cnn, exact
from torch import nn
from torch.nn import functional as F

from lxt_compose import Attention, Composite, Epsilon, Gamma, Identity, Norm, SoftmaxTaylor, Status, Stop, Uniform

EPSILON = str(Epsilon())


def reported(model, rules=(), passes=1, formulation="relevance", **inputs):
    with Composite(rules, formulation=formulation).register(model) as registration:
        for _ in range(passes):
            model(**inputs)
        return registration.report()


def ops(report):
    """path -> {operation: (rule, calls, status)} of the operations."""
    found = {}
    for row in report.rows:
        if row.kind == "op":
            found.setdefault(row.path, {})[row.target] = (row.rule, row.calls, row.status)
    return found


def modules(report):
    return {
        row.path: (row.target, row.rule, row.key, row.calls, row.status) for row in report.rows if row.kind == "module"
    }


def embeddings(size, rows=2, tokens=5):
    return torch.randn(rows, tokens, size, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture(scope="module")
def transformers():
    library = pytest.importorskip("transformers")
    library.logging.set_verbosity_error()
    return library


def llama(transformers, layers=3):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.LlamaModel(config).eval()


# ---- transformers ---------------------------------------------------------------------------------------------------


def test_a_llama_by_default(transformers):
    """Every operation of each block, with its family's rule: residuals, gates, norms, rotary embeddings, attention."""
    report = reported(llama(transformers), inputs_embeds=embeddings(32))
    assert report.complete
    assert report.unmatched == ()
    found = ops(report)
    for layer in range(3):
        block = f"layers.{layer}"
        assert found[block] == {"add": (EPSILON, 2, Status.DEFAULT)}
        assert found[f"{block}.mlp"] == {"mul": (str(Uniform()), 1, Status.DEFAULT)}
        assert found[f"{block}.mlp.gate_proj"] == {"linear": (EPSILON, 1, Status.DEFAULT)}
        attention = found[f"{block}.self_attn"]
        assert attention["scaled_dot_product_attention"] == (str(Attention(1e-6)), 1, Status.DEFAULT)
        assert attention["cat"][2] is Status.EXACT
        assert found[f"{block}.input_layernorm"]["rsqrt"] == (str(Stop()), 1, Status.DEFAULT)
    assert Counter(row.calls for row in report.rows if row.target == "linear") == {1: 3 * 7}


def test_the_keys_of_a_llama(transformers):
    """Types, globs, functions; a block that is bound shadows its parts, and each row says by which key it is ruled."""
    rules = {
        "layers.1.mlp": Gamma(),
        "layers.*.mlp.act_fn": Identity(),
        nn.Linear: Epsilon(),
        F.scaled_dot_product_attention: Stop(),
        type(llama(transformers).norm): Norm(),
        torch.cumsum: Epsilon(),
    }
    report = reported(llama(transformers), rules, inputs_embeds=embeddings(32))
    found = modules(report)
    assert found["layers.1.mlp"] == ("LlamaMLP", str(Gamma()), "'layers.1.mlp'", 1, Status.RULED)
    for name in ("gate_proj", "up_proj", "down_proj", "act_fn"):
        assert found[f"layers.1.mlp.{name}"][3:] == (0, Status.SHADOWED)
        assert found[f"layers.0.mlp.{name}"][3:] == (1, Status.RULED)
    assert found["layers.0.mlp.act_fn"][2] == "'layers.*.mlp.act_fn'"
    assert found["norm"] == ("LlamaRMSNorm", str(Norm()), "LlamaRMSNorm", 1, Status.RULED)
    assert ops(report)["layers.2.self_attn"]["scaled_dot_product_attention"] == (str(Stop()), 1, Status.RULED)
    assert not any(path.endswith("layernorm") for path in ops(report))  # its rule is for all that is inside
    assert report.unmatched == ("torch.cumsum",)
    assert report.complete


def test_a_llama_of_any_depth_is_one_screen(transformers):
    """Blocks that repeat are folded into one, with a count; every row can be had."""
    few, many = (
        str(reported(llama(transformers, layers), {nn.Linear: Epsilon()}, inputs_embeds=embeddings(32, 1, 2)))
        for layers in (3, 12)
    )
    assert len(many.splitlines()) == len(few.splitlines()) < 40
    assert "layers.{0..11} x12" in many
    report = reported(llama(transformers, 3), {nn.Linear: Epsilon()}, inputs_embeds=embeddings(32, 1, 2))
    every = report.to_string(every_row=True)
    assert sum(line.startswith("layers.") for line in every.splitlines()) == 3 * 7
    assert max(map(len, every.splitlines())) <= 100


def test_a_bert_and_its_pooler(transformers):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=50
    )
    model = transformers.BertModel(config).eval()
    rules = {nn.LayerNorm: Norm(), "pooler": Epsilon(), "*.query": Stop()}
    report = reported(model, rules, inputs_embeds=embeddings(32))
    found = modules(report)
    assert found["pooler"] == ("BertPooler", EPSILON, "'pooler'", 1, Status.RULED)
    assert found["encoder.layer.1.attention.self.query"][1:4] == (str(Stop()), "'*.query'", 1)
    assert sum(kind == "LayerNorm" for kind, *_ in found.values()) == 5
    assert ops(report)["encoder.layer.0.intermediate.intermediate_act_fn"]["gelu"][0] == str(Identity())
    assert ops(report)["encoder.layer.0.output.dropout"]["dropout"][2] is Status.EXACT
    assert "pooler.activation" not in ops(report)
    assert report.complete


def test_a_gpt2_and_its_written_out_activation(transformers):
    """``gelu_new`` is written out with pow and tanh; as a module it is one row, its convolutions are addmm."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50)
    report = reported(transformers.GPT2Model(config).eval(), inputs_embeds=embeddings(32))
    assert modules(report)["h.0.mlp.act"][:2] == ("NewGELUActivation", str(Identity()))
    assert ops(report)["h.1.attn.c_attn"]["addmm"] == (EPSILON, 1, Status.DEFAULT)
    assert report.complete


# ---- torch's own models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_transformer_encoder_of_torch(formulation):
    """Attention is one operation; its output projection is never called, and is listed as not executed."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, activation="gelu")
    model = nn.TransformerEncoder(layer, 2).eval()
    rules = {nn.Linear: Epsilon(), nn.LayerNorm: Norm(), F.softmax: SoftmaxTaylor()}
    report = reported(model, rules, formulation=formulation, src=embeddings(32))
    attention = ops(report)["layers.0.self_attn"]
    assert attention["multi_head_attention_forward"][1:] == (1, Status.DEFAULT)
    assert {row.path for row in report.not_executed} == {"layers.0.self_attn.out_proj", "layers.1.self_attn.out_proj"}
    assert "not executed: NonDynamicallyQuantizableLinear at layers.{0,1}.self_attn.out_proj (x2)" in str(report)
    assert report.complete


def test_a_cnn_with_batch_norm_dropout_and_pooling():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout2d(0.5),
        nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    x = torch.randn(2, 1, 12, 12, requires_grad=True)
    report = reported(model, {nn.Conv2d: Gamma(), nn.ReLU: Identity()}, input=x)
    by_path = {row.path: (row.target, row.rule, row.status) for row in report.rows}
    assert by_path == {
        "0": ("Conv2d", str(Gamma()), Status.RULED),
        "1": ("batch_norm", EPSILON, Status.DEFAULT),
        "2": ("ReLU", str(Identity()), Status.RULED),
        "3": ("max_pool2d", "", Status.EXACT),
        "4": ("dropout2d", "", Status.EXACT),
        "5": ("Conv2d", str(Gamma()), Status.RULED),
        "6": ("ReLU", str(Identity()), Status.RULED),
        "7": ("adaptive_avg_pool2d", EPSILON, Status.DEFAULT),
        "8": ("flatten", "", Status.EXACT),
        "9": ("linear", EPSILON, Status.DEFAULT),
    }
    # in train mode batch norm is a normalization, and dropout drops
    with pytest.warns(UserWarning, match="dropout is active in '4'"):
        report = reported(model.train(), {nn.Conv2d: Gamma()}, input=x)
    by_path = {row.path: (row.target, row.rule, row.status) for row in report.rows}
    assert by_path["1"] == ("batch_norm", str(Norm()), Status.DEFAULT)
    assert [note.partition(",")[0] for note in report.notes] == [
        "batch norms use the statistics of the batch (train mode)"
    ]
    assert by_path["4"][2] is Status.DEFAULT


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell])
def test_recurrent_networks_are_taken_apart(kind):
    """The kernel and its steps have rows; a rule on the module takes it as one unit."""
    model = Fn(lambda self, x: self.memory(x)[0], memory=kind(4, 5))
    x = torch.randn(3, 4, requires_grad=True)
    report = reported(Named(model), x=x)
    assert report.complete
    rows = ops(report)["model.memory"]
    (kernel,) = [name for name, (rule, _, _) in rows.items() if rule == "(taken apart)"]
    assert rows[kernel] == ("(taken apart)", 1, Status.DEFAULT)
    assert rows["linear"][::2] == (EPSILON, Status.DEFAULT)
    assert reported(Named(model), {"model.memory": Epsilon()}, x=x).complete


def test_an_uncovered_operation_is_named_with_its_path():
    model = Named(Fn(lambda self, x: self.inner(x), inner=Fn(lambda self, x: torch.atan2(x, x * x))))
    report = reported(model, x=torch.randn(3, 4, requires_grad=True))
    assert not report.complete
    (row,) = report.uncovered
    assert row.path == "model.inner"
    assert str(report).startswith("NOT complete: 1 uncovered: atan2 in model.inner")
    assert "uncovered" in report.to_markdown()
    assert reported(model, {"model.inner": Epsilon()}, x=torch.randn(3, 4, requires_grad=True)).complete


class Named(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


# ---- before, after, again -------------------------------------------------------------------------------------------


def test_before_any_forward_pass_it_shows_what_is_bound():
    model = nn.Sequential(Residual(6), Residual(6), nn.Linear(6, 3))
    with Composite({nn.Linear: Gamma(), "1": Epsilon(), torch.cumsum: Stop(), nn.Conv2d: Stop()}).register(
        model
    ) as registration:
        report = registration.report()
        assert not report.complete
        assert not report.executed
        assert {row.path: (row.rule, row.status) for row in report.rows} == {
            "0.fc1": (str(Gamma()), Status.BOUND),
            "0.fc2": (str(Gamma()), Status.BOUND),
            "1": (EPSILON, Status.BOUND),
            "1.fc1": (str(Gamma()), Status.BOUND),
            "1.fc2": (str(Gamma()), Status.BOUND),
            "2": (str(Gamma()), Status.BOUND),
        }
        assert report.unmatched == ("Conv2d",)
        assert str(report).startswith("no forward has run yet")
        with torch.no_grad():
            model(torch.randn(2, 6))
        model(torch.randn(2, 6, requires_grad=True))
        statuses = Counter(row.status for row in registration.report().rows if row.kind == "module")
    assert statuses == {Status.RULED: 4, Status.SHADOWED: 2}
    assert registration.report().rows  # it can be asked after removal too


def test_calls_add_up_over_forward_passes():
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    once, thrice = (reported(cnn(), {nn.Conv2d: Gamma()}, passes, input=x) for passes in (1, 3))
    assert [(row.path, row.target, 3 * row.calls) for row in once.rows] == [
        (row.path, row.target, row.calls) for row in thrice.rows
    ]


def test_a_module_that_is_not_reached_this_time():
    """Experts that a router leaves out are not executed, and it is no fault."""
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    routed = Fn(lambda self, x: self.experts["a"](x), experts=model)
    with Composite({nn.Linear: Gamma()}).register(routed) as registration:
        routed(torch.randn(2, 6, requires_grad=True))
        report = registration.report()
    assert [(row.path, row.status) for row in report.not_executed] == [("experts.b", Status.NOT_EXECUTED)]
    assert report.complete


def test_a_shared_module_is_one_row_with_its_other_names():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    with Composite({"2": Gamma()}).register(model) as registration:
        model(torch.randn(2, 6, requires_grad=True))
        rows = [row for row in registration.report().rows if row.kind == "module"]
    assert [(row.path, row.aliases, row.calls) for row in rows] == [("0", ("2",), 2)]


def test_operations_of_the_model_itself_and_of_the_caller():
    """Operations in the root have the empty path; what the caller does with the output is not the model's."""
    model = Fn(lambda self, x: torch.cumsum(self.layer(x), -1), layer=nn.Linear(6, 6))
    with Composite().register(model) as registration:
        model(torch.randn(2, 6, requires_grad=True) * 2).cumprod(-1).sum().backward()
        report = registration.report()
    assert {(row.path, row.target) for row in report.rows} == {("", "cumsum"), ("layer", "linear")}
    assert "in (model)" in str(report)


def test_constants_are_not_in_the_table():
    """What carries no relevance has no row: masks, positions, counts of tokens."""

    def forward(self, x):
        mask = torch.ones(6).cumsum(0).exp() @ torch.eye(6)
        return self.layer(x) * mask.softmax(0)

    with Composite({torch.matmul: Stop(), F.softmax: Stop()}).register(
        Fn(forward, layer=nn.Linear(6, 6))
    ) as registration:
        registration.model(torch.randn(2, 6, requires_grad=True))
        report = registration.report()
    assert {row.target for row in report.rows} == {"linear", "mul"}
    assert set(report.unmatched) == {"torch.matmul", "F.softmax"}


def test_rows_as_data():
    """to_dicts() is ready for JSON, Markdown and HTML hold every path, and a report is a value."""
    model = nn.Sequential(Residual(6), nn.Linear(6, 3)).double()
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    report = reported(model, exact_rules(), input=x)
    rows = json.loads(json.dumps(report.to_dicts()))
    assert {row["path"] for row in rows} == {"0", "0.fc1", "0.act", "0.fc2", "1"}
    for text in (report.to_markdown(every_row=True), report.to_string(every_row=True), report._repr_html_()):
        assert "Linear" in text
        assert "add" in text
    assert report == reported(model, exact_rules(), input=x)


def exact_rules():
    return [(entry.key, entry.rule) for entry in exact().assignments]
