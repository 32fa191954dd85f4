"""The baselines, against their definitions written out, and against Captum where it is installed."""

import pytest
import torch
from support import Fn, fingerprint, make
from torch import nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon, Family, TraceError, attribute, baselines
from lxt_compose.baselines.attention_maps import attention_maps
from lxt_compose.baselines.points import points_of

ALL = [
    baselines.gradient_x_input,
    baselines.integrated_gradients,
    baselines.smoothgrad,
    baselines.attention_rollout,
    baselines.gradient_x_attention_rollout,
]
SCORES = ALL[:3]


def test_each_baseline_is_among_these():
    public = {name for name, found in vars(baselines).items() if getattr(found, "__module__", "") == baselines.__name__}
    named = {method.__name__ for method in ALL} | {"random", "captum"}
    assert {name for name in public if not name.startswith("_")} == named


def top_gradient(model, x, target):
    x = x.detach().clone().requires_grad_()
    picked = model(x)[torch.arange(len(x)), target]
    return torch.autograd.grad(picked.sum(), x)[0]


def test_gradient_x_input_by_hand():
    model, x = make("cnn")
    target = torch.tensor([2, 0])
    expected = (x * top_gradient(model, x, target)).sum(1)
    torch.testing.assert_close(baselines.gradient_x_input(model, x, target=target), expected)


def test_integrated_gradients_by_hand_and_their_completeness():
    model, x = make("transformer")
    target, start = torch.tensor([1, 1]), torch.randn(5, 8, dtype=torch.float64)
    steps = [top_gradient(model, start + (k + 0.5) / 40 * (x - start), target) for k in range(40)]
    expected = ((x - start) * sum(steps) / 40).sum(-1)
    found = baselines.integrated_gradients(model, x, target=1, baseline=start, steps=40)
    torch.testing.assert_close(found, expected)
    fine = baselines.integrated_gradients(model, x, target=1, baseline=start, steps=400)
    with torch.no_grad():
        change = (model(x) - model(start.expand_as(x)))[:, 1]
    torch.testing.assert_close(fine.sum(1), change, rtol=1e-3, atol=1e-3)


def test_integrated_gradients_of_a_square_are_exact():
    model = Fn(lambda self, x: (x.square() * torch.arange(1.0, 4)).cumsum(1))
    x = torch.randn(4, 3)
    expected = x.square() * torch.arange(1.0, 4)
    torch.testing.assert_close(baselines.integrated_gradients(model, x, target=2, steps=1), expected)


def test_smoothgrad_is_the_mean_over_noise():
    model, x = make("mlp")
    still = baselines.smoothgrad(model, x, target=1, noise=0.0, samples=2)
    torch.testing.assert_close(still, baselines.gradient_x_input(model, x, target=1))
    linear = nn.Linear(6, 3).double()
    noisy = baselines.smoothgrad(linear, x, target=1, noise=0.5, samples=3)
    torch.testing.assert_close(noisy, (x * linear.weight[1]).detach())
    points = []
    seen = Fn(lambda self, x: (points.append(x.detach().clone()), self.net(x))[1], net=model)
    baselines.smoothgrad(seen, x, target=1, noise=0.1, samples=300)
    noise = torch.stack(points[1:-1]) - x
    spread = (x.amax(1) - x.amin(1))[:, None] * 0.1
    assert float(noise.mean().abs()) < 0.02
    torch.testing.assert_close(noise.std((0, 2)), spread[:, 0], rtol=0.1, atol=0)


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.__name__)
def test_no_trace_and_no_dependence_on_the_batch_size(method):
    model, x = make("transformer")
    x = torch.cat([x, x.flip(1), 2 * x])
    model.head.weight.grad = torch.zeros_like(model.head.weight)
    before = fingerprint(model)
    whole = method(model, x)
    assert fingerprint(model) == before
    assert not whole.requires_grad
    assert x.grad is None
    torch.testing.assert_close(method(model, x, batch_size=4), whole)
    assert whole.shape == x.shape[:2]


def test_token_ids_are_explained_by_their_embeddings():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=20, num_labels=3, max_position_embeddings=16)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(1, 40, (2, 6))
    embedded = model.get_input_embeddings()(ids).detach()
    inputs = {"input_ids": ids, "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    as_floats = {"inputs_embeds": embedded, "attention_mask": inputs["attention_mask"]}
    for method in SCORES:
        torch.testing.assert_close(method(model, inputs, target=1), method(model, as_floats, target=1))
    assert baselines.random(model, inputs).shape == (2, 6)


# ---- attention -----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Self-attention in the way that `kind` says, all with the same weights."""

    def __init__(self, kind, causal=False):
        super().__init__()
        self.kind, self.causal = kind, causal
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        if self.kind == "module":
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype) if self.causal else None
            return x + self.attention(x, x, x, attn_mask=mask, need_weights=False, is_causal=self.causal)[0]
        q, k, v = F.linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
        if self.kind == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-1, -2) / 2
            if self.causal:
                scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -torch.inf)
            self.weights = torch.softmax(scores, -1)
            mixed = self.weights @ v
        return x + self.attention.out_proj(mixed.transpose(1, 2).flatten(-2))


def attending(kind, causal=False):
    torch.manual_seed(0)
    blocks = [Block(kind, causal) for _ in range(3)]
    head = Fn(lambda self, x: self.head(x[:, -1 if causal else 0]), head=nn.Linear(8, 3))
    return nn.Sequential(*blocks, head).double().eval()


@pytest.mark.parametrize("causal", [False, True])
def test_rollout_by_hand_whatever_computes_attention(causal):
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    plain = attending("plain", causal)
    plain(x)
    product = torch.eye(5, dtype=torch.float64)
    for block in plain[:3]:
        product = (block.weights.mean(1) + torch.eye(5)) / 2 @ product
    expected = product[:, -1 if causal else 0].detach()
    for kind in ("plain", "fused", "module"):
        torch.testing.assert_close(baselines.attention_rollout(attending(kind, causal), x), expected)
    torch.testing.assert_close(baselines.attention_rollout(plain, x, read="mean"), product.mean(1).detach())
    torch.testing.assert_close(baselines.attention_rollout(plain, x, read=2), product[:, 2].detach())


@pytest.mark.parametrize("causal", [False, True])
def test_gradient_x_attention_rollout_by_hand(causal):
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    plain = attending("plain", causal)
    logits = plain(x.clone().requires_grad_())[:, 1]
    weights = [block.weights for block in plain[:3]]
    gradients = torch.autograd.grad(logits.sum(), weights)
    product = torch.eye(5, dtype=torch.float64)
    for weight, gradient in zip(weights, gradients, strict=True):
        product = product + (weight * gradient).clamp(min=0).mean(1) @ product
    expected = product[:, -1 if causal else 0].detach()
    for kind in ("plain", "fused", "module"):
        found = baselines.gradient_x_attention_rollout(attending(kind, causal), x, target=1)
        torch.testing.assert_close(found, expected)


def test_the_maps_are_those_that_transformers_returns():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, intermediate_size=20)  # fmt: skip
    torch.manual_seed(0)
    ids = torch.randint(1, 40, (2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    inputs = {"input_ids": ids, "attention_mask": mask}
    (_, maps), = attention_maps(points_of(model, inputs, None, None), gradients=False)  # fmt: skip
    model.set_attn_implementation("eager")
    expected = model(**inputs, output_attentions=True).attentions
    assert len(maps) == len(expected) == 2
    for (found, _), weights in zip(maps, expected, strict=True):
        real = mask[:, None, :, None] * mask[:, None, None, :] * torch.ones(6, 6).tril()
        torch.testing.assert_close(found * real, weights.detach() * real, rtol=1e-5, atol=1e-6)


def test_a_model_without_attention_is_told():
    model, x = make("cnn")
    with pytest.raises(ValueError, match="no self-attention was met in Sequential"):
        baselines.attention_rollout(model, x)
    with pytest.raises(ValueError, match="'auto', 'first', 'last', 'mean' or a position below 5"):
        baselines.attention_rollout(attending("plain"), torch.randn(1, 5, 8).double(), read="middle")


# ---- random and Captum ---------------------------------------------------------------------------------------------


def test_random_scores_have_the_shape_of_the_units_and_a_seed():
    model, x = make("cnn")
    assert baselines.random(model, x).shape == (2, 8, 8)
    assert torch.equal(baselines.random(model, x, seed=3), baselines.random(model, x, seed=3))
    assert not torch.equal(baselines.random(model, x, seed=3), baselines.random(model, x, seed=4))


@pytest.mark.parametrize("count", [0, 2.5, True])
def test_counts_are_checked(count):
    model, x = make("mlp")
    with pytest.raises(ValueError, match="steps must be a whole number from 1 on"):
        baselines.integrated_gradients(model, x, steps=count)
    with pytest.raises(ValueError, match="samples must be a whole number from 1 on"):
        baselines.smoothgrad(model, x, samples=count)


@pytest.mark.parametrize("value", ["zero", None, True, float("nan")])
def test_numbers_are_checked(value):
    model, x = make("mlp")
    with pytest.raises(ValueError, match=f"baseline must be a finite number, got {value!r}"):
        baselines.integrated_gradients(model, x, baseline=value)
    with pytest.raises(ValueError, match=f"noise must be a finite number from 0 on, got {value!r}"):
        baselines.smoothgrad(model, x, noise=value)
    with pytest.raises(ValueError, match=r"noise must be a finite number from 0 on, got -0\.1"):
        baselines.smoothgrad(model, x, noise=-0.1)


class Detached(nn.Module):
    def forward(self, x):
        return x.detach() * 2


def test_a_model_that_cuts_its_input_off_is_told():
    with pytest.raises(RuntimeError, match="no output of Detached depends on its inputs: the model cuts them off"):
        baselines.gradient_x_input(Detached(), torch.randn(2, 3))


def test_rollout_of_half_precision_is_added_up_in_single():
    model, x = make("transformer")
    assert baselines.attention_rollout(model, x).dtype == torch.float64
    assert baselines.attention_rollout(model.bfloat16(), x.bfloat16()).dtype == torch.float32


def test_captum_agrees_where_it_has_the_same():
    pytest.importorskip("captum", reason="Captum is not installed")
    model, x = make("cnn")
    plain = baselines.captum("InputXGradient", model, x, target=1)
    torch.testing.assert_close(plain, baselines.gradient_x_input(model, x, target=1))
    theirs = baselines.captum("IntegratedGradients", model, x, target=1, n_steps=30, method="riemann_middle")
    torch.testing.assert_close(theirs, baselines.integrated_gradients(model, x, target=1, steps=30))
    with pytest.raises(ValueError, match="no method 'Magic'"):
        baselines.captum("Magic", model, x)


def test_captum_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    model, x = make("mlp")
    with pytest.raises(ImportError, match="pip install captum"):
        baselines.captum("Saliency", model, x)


class Several(nn.Module):
    """A product of two inputs, a third in a dictionary that is added, and a constant mask."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))

    def forward(self, a, b, extra=None, attention_mask=None):
        z = a * b * (1.0 if attention_mask is None else attention_mask)
        return (z if extra is None else z + extra["c"].square()) @ self.weight


def several(seed=0):
    torch.manual_seed(seed)
    return (torch.randn(5, 4, dtype=torch.float64) for _ in range(3))


class TestSeveralInputs:
    @pytest.mark.parametrize("method", SCORES)
    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_each_is_explained_by_the_name_that_attribute_gives_it(self, method, batch_size):
        model, (a, b, c) = Several(), several()
        for inputs in ((a, b, {"c": c}), {"a": a, "b": b, "extra": {"c": c}}):
            found = method(model, inputs, target=1, batch_size=batch_size)
            names = list(attribute(model, inputs, target=1).relevances)
            assert list(found) == names == ["a", "b", "extra.c"]
            assert all(scores.shape == (5, 4) for scores in found.values())
            torch.testing.assert_close(found, method(model, inputs, target=1))

    def test_gradient_x_input_by_hand(self):
        model, (a, b, c) = Several(), several()
        found = baselines.gradient_x_input(model, (a, b, {"c": c}), target=2)
        w = model.weight.detach()[:, 2]
        for name, expected in {"a": a * b * w, "b": a * b * w, "extra.c": 2 * c.square() * w}.items():
            torch.testing.assert_close(found[name], expected)

    def test_integrated_gradients_are_complete_over_all_inputs(self):
        model, (a, b, c) = Several(), several()
        start = {"a": 1.0, "b": torch.full((4,), -0.5, dtype=torch.float64), "extra.c": 0.0}
        found = baselines.integrated_gradients(model, (a, b, {"c": c}), target=2, baseline=start, steps=200)
        with torch.no_grad():
            change = model(a, b, {"c": c}) - model(torch.ones_like(a), torch.full_like(b, -0.5), {"c": 0 * c})
        torch.testing.assert_close(sum(x.sum(1) for x in found.values()), change[:, 2], rtol=1e-4, atol=1e-4)

    def test_baselines_that_do_not_fit_are_told(self):
        model, (a, b, _) = Several(), several()
        with pytest.raises(ValueError, match="several inputs; give a baseline for each, as a dictionary of a, b"):
            baselines.integrated_gradients(model, (a, b), baseline=torch.zeros(4))
        with pytest.raises(ValueError, match="an entry for each of a, b, got a"):
            baselines.integrated_gradients(model, (a, b), baseline={"a": 0.0})
        with pytest.raises(ValueError, match="baseline must be a finite number, got nan"):
            baselines.integrated_gradients(model, (a, b), baseline={"a": 0.0, "b": float("nan")})

    def test_an_input_that_does_not_matter_gets_nothing_and_a_constant_is_none(self):
        model, (a, b, c) = Fn(lambda self, a, b: a @ torch.ones(4, 2, dtype=a.dtype)), several()
        _, unused = baselines.gradient_x_input(model, (a, b), target=0).values()
        assert (unused == 0).all()
        found = baselines.gradient_x_input(Several(), {"a": a, "b": b, "attention_mask": c.sign()}, target=0)
        assert list(found) == ["a", "b"]

    def test_the_same_tensor_twice_is_two_inputs(self):
        model, (a, _, _) = Several(), several()
        found = baselines.gradient_x_input(model, (a, a), target=0)
        one = baselines.gradient_x_input(model, (a, a.clone()), target=0)
        torch.testing.assert_close(found, one)

    def test_an_input_that_all_samples_share_gets_something_from_each(self):
        class Shared(nn.Module):
            def forward(self, x, table):
                return torch.stack([(x * table).sum(1), x.sum(1)], 1)

        a, b, _ = several()
        whole = baselines.gradient_x_input(Shared(), (a, b[:1].expand(5, -1)), target=0)
        torch.testing.assert_close(whole["table"], a * b[0])

    @pytest.mark.parametrize("method", [baselines.attention_rollout, baselines.gradient_x_attention_rollout])
    def test_a_rollout_is_of_tokens_that_all_attention_is_over(self, method):
        def attend(x):
            return F.scaled_dot_product_attention(x, x, x)

        apart = Fn(lambda self, a, b: attend(a).mean(1) + attend(b).mean(1))
        together = Fn(lambda self, a, b: attend(attend(a) + b).mean(1))
        a, b = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"several inputs, each with tokens of its own \(args0, args1\)"):
            method(apart, (a, b))
        assert method(together, (a, b)).shape == (2, 5)

    def test_two_kinds_of_token_ids(self):
        class Translator(nn.Module):
            def __init__(self):
                super().__init__()
                self.words, self.out = nn.Embedding(11, 6).double(), nn.Linear(6, 3).double()

            def forward(self, input_ids, decoder_input_ids):
                return self.out(self.words(input_ids).mean(1) * self.words(decoder_input_ids).mean(1))

        torch.manual_seed(0)
        model, ids, later = Translator(), torch.randint(0, 11, (3, 5)), torch.randint(0, 11, (3, 4))
        inputs = {"input_ids": ids, "decoder_input_ids": later}
        for method in SCORES:
            found = method(model, inputs, target=1)
            assert {name: scores.shape for name, scores in found.items()} == {
                "input_ids": (3, 5), "decoder_input_ids": (3, 4)
            }  # fmt: skip
        found = baselines.gradient_x_input(model, inputs, target=1)
        expected = attribute(model, inputs, target=1, composite=plain_gradient()).scores
        torch.testing.assert_close(found, expected)
        assert baselines.random(model, inputs)["decoder_input_ids"].shape == (3, 4)

    def test_one_input_beside_token_ids(self):
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.words, self.out = nn.Embedding(11, 4).double(), nn.Linear(4, 3).double()

            def forward(self, input_ids, pixel_values):
                return self.out(self.words(input_ids).mean(1) + pixel_values.mean((2, 3)))

        torch.manual_seed(0)
        model, ids, pixels = Both(), torch.randint(0, 11, (2, 5)), torch.randn(2, 4, 6, 6, dtype=torch.float64)
        inputs = {"input_ids": ids, "pixel_values": pixels}
        found = baselines.integrated_gradients(model, inputs, target=1)
        assert found["input_ids"].shape == (2, 5)
        assert found["pixel_values"].shape == (2, 6, 6)
        total = found["input_ids"].sum(1) + found["pixel_values"].sum((1, 2))
        torch.testing.assert_close(total, (model(ids, pixels) - model.out.bias)[:, 1].detach())
        assert baselines.random(model, inputs)["pixel_values"].shape == (2, 6, 6)


def plain_gradient():
    return Composite(defaults={family: Epsilon(0.0) for family in Family}, formulation="gradient")


class TestCaptumOnAnyInputs:
    @pytest.mark.parametrize("method", ["InputXGradient", "IntegratedGradients"])
    def test_several_inputs_dicts_and_token_ids(self, method):
        pytest.importorskip("captum")
        ours = baselines.gradient_x_input if method == "InputXGradient" else baselines.integrated_gradients
        model, (a, b, c) = Several(), several()
        for inputs in ((a, b), {"a": a, "b": b, "extra": {"c": c}}):
            for target in (1, None, (0, 2)):
                found = baselines.captum(method, model, inputs, target=target)
                torch.testing.assert_close(found, ours(model, inputs, target=target), rtol=1e-3, atol=1e-4)
        words = nn.Sequential(nn.Embedding(11, 6), nn.Flatten(1), nn.Linear(30, 3)).double()
        ids = torch.randint(0, 11, (3, 5))
        found = baselines.captum(method, words, ids, target=1)
        torch.testing.assert_close(found, ours(words, ids, target=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("method", [baselines.integrated_gradients, baselines.smoothgrad], ids=["paths", "noise"])
def test_one_graph_for_all_gradients_gives_the_same_bits(kind, method):
    model, x = make(kind)
    before = fingerprint(model)
    for batch_size in (None, 1):
        eager = method(model, x, batch_size=batch_size)
        assert torch.equal(method(model, x, batch_size=batch_size, traced=True), eager)
    assert fingerprint(model) == before


def test_one_graph_for_all_gradients_runs_the_model_once_for_each_batch():
    net, x = make("mlp")
    calls = []
    model = Fn(lambda self, x: (calls.append(1), self.net(x))[1], net=net)
    baselines.integrated_gradients(model, x, target=1, steps=20, traced=True)
    assert len(calls) < 6


def test_gradients_that_are_no_graph_are_refused():
    model = Fn(lambda self, x: x * 2 if x.sum() > 0 else x)
    with pytest.raises(TraceError, match=r"Fn cannot be written down as one graph"):
        baselines.integrated_gradients(model, torch.rand(2, 3), target=1, traced=True)
    table = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(TraceError, match=r"ids of .* are looked up anew .* give the embeddings themselves"):
        baselines.smoothgrad(table, torch.tensor([[1, 2, 3]]), target=1, traced=True)
