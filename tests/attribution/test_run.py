"""attribute(): the right relevance, for any kind of input and target, in batches of any size, without a trace."""

import gc
import weakref

import pytest
import torch
from support import FORMULATIONS, Fn, assert_close, fingerprint, make
from support import attribute as by_hand
from torch import nn

from lxt_compose import Attribution, Composite, Epsilon, Stop, attribute, heatmap, presets

transformers = pytest.importorskip("transformers")

from small_transformers import bert, gpt2, ids, llama, t5  # noqa: E402

EXACT = Composite(formulation="gradient")


def slot_at(model, embeddings, choose, composite=EXACT, **inputs):
    """The relevance of embeddings for one number, with nothing but register() and autograd: the slow way."""
    x = embeddings.detach().clone().requires_grad_()
    with composite.register(model):
        number = choose(model(inputs_embeds=x, **inputs).logits)
        (slot,) = torch.autograd.grad(number, x)
    return x.detach() * slot


class Words(nn.Module):
    """A bag of words that nobody told how to find its embedding: [samples, tokens] to [samples, 3]."""

    def __init__(self):
        super().__init__()
        self.places, self.words, self.head = nn.Embedding(9, 5), nn.Embedding(60, 5), nn.Linear(5, 3)

    def forward(self, ids, weights=None):
        x = self.places(torch.arange(ids.shape[1])) + self.words(ids)
        x = torch.tanh(x) * (1 if weights is None else weights[..., None])
        return self.head(x.mean(1))


def words():
    torch.manual_seed(0)
    return Words().double().eval()


class TestInputs:
    @pytest.mark.parametrize("formulation", FORMULATIONS)
    @pytest.mark.parametrize("name", ["mlp", "cnn", "residual"])
    def test_a_tensor(self, name, formulation):
        model, x = make(name)
        composite = Composite(formulation=formulation)
        found = attribute(model, x, target=1, composite=composite)
        assert_close(found.relevance, by_hand(model, x, composite, index=1))
        assert torch.equal(found.output, model(x)[:, 1].detach())
        assert found.target.tolist() == [1] * len(x)
        assert found.report.complete
        assert torch.equal(found.inputs["input"], x)

    @pytest.mark.parametrize("mask", [False, True])
    @pytest.mark.parametrize("build", [bert, gpt2, llama])
    def test_what_a_tokenizer_returns(self, build, mask):
        model, given = build(), {"input_ids": ids()}
        if mask:
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            given["attention_mask"][1, 4:] = 0
        found = attribute(model, transformers.BatchEncoding(given), target=2)
        rest = {name: value for name, value in given.items() if name != "input_ids"}
        last = torch.tensor([5, 3 if mask else 5, 5])

        def choose(logits):
            return (logits[:, 2] if logits.dim() == 2 else logits[range(3), last, 2]).sum()

        embeddings = model.get_input_embeddings()(given["input_ids"])
        assert_close(found.relevance, slot_at(model, embeddings, choose, **rest))
        assert found.relevance.shape == (3, 6, 16)
        assert_close(found.scores, found.relevance.sum(-1))

    @pytest.mark.parametrize("wrap", [lambda i: i, lambda i: (i,), lambda i: {"ids": i}, lambda i: (i.int(),)])
    def test_the_first_embedding_that_runs_on_the_ids(self, wrap):
        model, given = words(), ids(2, 5)
        found = attribute(model, wrap(given), target=0)
        embedded = model.words(given).detach().requires_grad_()
        rest = Fn(lambda self, x: self.of.head(torch.tanh(self.of.places(torch.arange(5)) + x).mean(1)), of=model)
        assert_close(found.relevance, by_hand(rest, embedded, EXACT, index=0))

    def test_ids_that_look_like_positions(self):
        """Positions 0 to 4 are embedded first, by another layer, and equal the ids in every value."""
        model = words()
        found = attribute(model, torch.arange(5)[None], target=0)
        with torch.no_grad():
            x = model.words.weight[:5]
            z = model.places.weight[:5] + x
            expected = x * (torch.tanh(z) / z) * model.head.weight[0] / 5
        assert_close(found.relevance[0], expected)

    def test_ids_and_numbers_together(self):
        model, given = words(), ids(2, 5)
        weights = torch.rand(2, 5, dtype=torch.float64)
        found = attribute(model, {"ids": given, "weights": weights}, target=1)
        assert sorted(found.relevance) == ["ids", "weights"]
        assert found.relevance["weights"].shape == (2, 5)
        assert found.scores["ids"].shape == (2, 5)
        assert_close(found.scores["ids"] + 0, found.relevance["ids"].sum(-1))

    def test_encoder_and_decoder(self):
        model = t5()
        given = {"input_ids": ids(2, 6), "decoder_input_ids": ids(2, 4, seed=2)}
        given["decoder_attention_mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        given["attention_mask"] = torch.ones(2, 6, dtype=torch.long)
        found = attribute(model, given, target=5)
        assert {name: list(r.shape) for name, r in found.relevance.items()} == {
            "input_ids": [2, 6, 16], "decoder_input_ids": [2, 4, 16],
        }  # fmt: skip
        logits = model(**given).logits
        assert_close(found.output, torch.stack([logits[0, 3, 5], logits[1, 1, 5]]).detach())
        inputs = {name: value for name, value in given.items() if "ids" not in name}
        x, y = (model.get_input_embeddings()(given[name]).detach() for name in ("input_ids", "decoder_input_ids"))
        with EXACT.register(model):
            x, y = x.requires_grad_(), y.requires_grad_()
            logits = model(inputs_embeds=x, decoder_inputs_embeds=y, **inputs).logits
            slots = torch.autograd.grad(logits[0, 3, 5] + logits[1, 1, 5], (x, y))
        assert_close(found.relevance["input_ids"], (x * slots[0]).detach())
        assert_close(found.relevance["decoder_input_ids"], (y * slots[1]).detach())

    def test_a_layer_that_the_model_names_but_does_not_run(self):
        """T5 with tables of their own for the encoder and the decoder: the table that it names is used by neither."""
        model = t5()
        for stack in (model.encoder, model.decoder):
            stack.embed_tokens = nn.Embedding(60, 16).double()
        given = {"input_ids": ids(2, 6), "decoder_input_ids": ids(2, 4, seed=2)}
        found = attribute(model, given, target=5, layers=["encoder.block.0"], ledger=True)
        assert sorted(found.relevance) == ["decoder_input_ids", "input_ids"]
        x = model.encoder.embed_tokens(given["input_ids"]).detach()
        y = model.decoder.embed_tokens(given["decoder_input_ids"]).detach()
        with EXACT.register(model):
            x, y = x.requires_grad_(), y.requires_grad_()
            slots = torch.autograd.grad(model(inputs_embeds=x, decoder_inputs_embeds=y).logits[:, -1, 5].sum(), (x, y))
        assert_close(found.relevance["input_ids"], (x * slots[0]).detach())
        assert_close(found.relevance["decoder_input_ids"], (y * slots[1]).detach())
        assert {row.calls for row in found.report.rows if row.path == "lm_head"} == {1}
        assert found.ledger.unaccounted < 1e-8

    def test_the_same_ids_embedded_twice(self):
        embed = nn.Embedding(60, 4).double()
        model = Fn(lambda self, i: (self.e(i) * 2 + torch.tanh(self.e(i))).mean(1), e=embed)
        given = ids(2, 5)
        found = attribute(model, given, target=3)
        x = embed(given).detach()
        expected = torch.zeros_like(x)
        expected[..., 3] = (2 * x + torch.tanh(x))[..., 3] / 5
        assert_close(found.relevance, expected)

    @pytest.mark.parametrize("formulation", FORMULATIONS)
    def test_a_model_that_changes_its_input_in_place(self, formulation):
        model = Fn(lambda self, x: self.fc(x.mul_(2)), fc=nn.Linear(4, 2).double())
        x = torch.randn(3, 4, dtype=torch.float64)
        before = x.clone()
        found = attribute(model, x, target=1, composite=Composite({nn.Linear: Epsilon(1e-12)}, formulation=formulation))
        assert torch.equal(x, before)
        assert_close(found.relevance, 2 * x * model.fc.weight[1].detach())

    def test_embeddings_changed_in_place(self):
        embed = nn.Embedding(60, 4).double()
        model = Fn(lambda self, i: self.e(i).mul_(3).sum(1), e=embed)
        given = ids(2, 5)
        found = attribute(model, given, target=0)
        assert_close(found.relevance[..., 0], 3 * embed(given)[..., 0].detach())

    def test_gradient_times_input_of_a_model_of_tokens(self):
        model, given = gpt2(), ids()
        found = attribute(model, given, target=7, composite=Composite({"": Epsilon(0.0)}, formulation="gradient"))
        x = model.get_input_embeddings()(given).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(inputs_embeds=x).logits[:, -1, 7].sum(), x)
        assert_close(found.relevance, (x * gradient).detach(), 1e-6)  # the root's outputs are divided by themselves

    def test_callers_without_gradients(self):
        model, x = make("mlp")
        expected = attribute(model, x, target=0, composite=EXACT).relevance
        with torch.no_grad():
            assert torch.equal(attribute(model, x, target=0, composite=EXACT).relevance, expected)
        with torch.inference_mode():
            inside = x + 0
            assert torch.equal(attribute(model, x, target=0, composite=EXACT).relevance, expected)
            assert torch.equal(attribute(model, inside, target=0, composite=EXACT).relevance, expected)
            assert torch.is_inference_mode_enabled()


class TestTargets:
    """Rules are linear in what flows back, so every target is a weighted sum of the relevance of single logits."""

    @pytest.fixture
    def case(self):
        model, x = make("transformer")
        return model, x

    def single(self, case, formulation):
        model, x = case
        composite = Composite(formulation=formulation)
        return composite, torch.stack([by_hand(model, x, composite, index=index) for index in range(3)])

    @pytest.mark.parametrize("formulation", FORMULATIONS)
    def test_all_kinds(self, case, formulation):
        model, x = case
        composite, single = self.single(case, formulation)
        logits = model(x).detach()
        top, rows = logits.argmax(1), range(len(x))
        for target, expected, value, told in (
            (None, single[top, rows], logits[rows, top], top.tolist()),
            (2, single[2], logits[:, 2], [2, 2]),
            ([2, 0], single[[2, 0], rows], logits[rows, [2, 0]], [2, 0]),
            (torch.tensor([1, 0]), single[[1, 0], rows], logits[rows, [1, 0]], [1, 0]),
            (torch.tensor(1), single[1], logits[:, 1], [1, 1]),
            ((2, 0), single[2] - single[0], logits[:, 2] - logits[:, 0], [[2, 0], [2, 0]]),
            ((None, 1), single[top, rows] - single[1], None, [[t, 1] for t in top.tolist()]),
            ([(2, 0), (0, 1)], single[[2, 0], rows] - single[[0, 1], rows], None, [[2, 0], [0, 1]]),
            (torch.tensor([[2, 0], [0, 1]]), single[[2, 0], rows] - single[[0, 1], rows], None, [[2, 0], [0, 1]]),
            ((0, "others"), single[0] - (single[1] + single[2]) / 2, None, [[0, -1], [0, -1]]),
        ):  # fmt: skip
            found = attribute(model, x, target=target, composite=composite)
            assert_close(found.relevance, expected)
            assert found.target.tolist() == told
            if value is not None:
                assert_close(found.output, value)

    @pytest.mark.parametrize("formulation", FORMULATIONS)
    def test_a_function(self, case, formulation):
        """For p = softmax(z)[1], logit j weighs dp/dz_j = p (delta_j1 - softmax_j)."""
        model, x = case
        composite, single = self.single(case, formulation)
        found = attribute(model, x, target=lambda z: z.softmax(-1)[:, 1], composite=composite)
        share = model(x).detach().softmax(-1)
        weights = share[:, 1:2] * (torch.tensor([0.0, 1, 0]) - share)
        assert_close(found.relevance, torch.einsum("nj,jn...->n...", weights, single))
        assert_close(found.output, share[:, 1])
        assert found.target is None

    def test_one_output_per_sample(self):
        model, x = make("mlp")
        model.append(Fn(lambda self, y: y[:, 1]))
        found = attribute(model, x, composite=EXACT)
        assert_close(found.relevance, by_hand(model, x, EXACT))
        assert found.target.tolist() == [0] * 4

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_the_last_real_token(self, side):
        """Padding changes nothing: a padded sample has the relevance that it has alone."""
        model, given = llama(), ids(2, 7)
        mask = torch.ones_like(given)
        real = slice(3, 7) if side == "left" else slice(0, 4)
        mask[1] = 0
        mask[1, real] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        both = attribute(model, {"input_ids": given, "attention_mask": mask, "position_ids": positions})
        alone = attribute(model, {"input_ids": given[1:, real]})
        assert both.target[1] == alone.target[0]
        assert_close(both.relevance[1, real], alone.relevance[0])
        assert both.relevance[1, mask[1] == 0].abs().max() == 0
        assert both.tokens(sample=1) == [str(i) for i in given[1, real].tolist()]

    def test_one_position_only(self):
        model, given = llama(), ids(2, 5)
        whole = attribute(model, {"input_ids": given})
        short = attribute(model, {"input_ids": given, "logits_to_keep": 1, "attention_mask": torch.ones_like(given)})
        assert_close(short.relevance, whole.relevance)

    def test_nothing_reaches_the_input(self):
        model, given = gpt2(), ids()
        found = attribute(model, given, composite=presets.attnlrp({"transformer.h.0": Stop()}))
        assert found.relevance.abs().max() == 0


class TestBatches:
    @pytest.mark.parametrize("build", [bert, gpt2])
    def test_any_size(self, build):
        model = build()
        given = {"input_ids": ids(7), "attention_mask": torch.ones(7, 6, dtype=torch.long)}
        given["attention_mask"][2, 3:] = 0
        target = torch.tensor([0, 1, 2, 0, 1, 2, 1])
        whole = attribute(model, given, target=target, layers=["*.0*"], ledger=True)
        for size in (1, 3, 7, 100):
            parts = attribute(model, given, target=target, layers=["*.0*"], batch_size=size, ledger=True)
            assert_close(parts.relevance, whole.relevance)
            assert_close(parts.output, whole.output)
            assert torch.equal(parts.target, target)
            assert list(parts.latent) == list(whole.latent)
            for name, relevance in whole.latent.items():
                assert_close(parts.latent[name], relevance)
            assert_close(parts.ledger.inputs, whole.ledger.inputs)
            assert parts.ledger.unaccounted < 1e-8

    @pytest.mark.parametrize("ledger", [False, True])
    def test_nothing_of_a_batch_outlives_it(self, ledger):
        """Memory is constant: when a batch begins, no tensor and no graph of those before it is there any more."""

        class Mark:
            """Lives as long as the node of the graph that it is put on."""

        model, x = make("cnn")
        alive, seen = [], []

        def watch(module, args, output):
            alive.append(weakref.ref(output))
            output.grad_fn.metadata["mark"] = mark = Mark()
            alive.append(weakref.ref(mark))

        def count(module, args):
            seen.append(sum(ref() is not None for ref in alive))

        for layer in model:
            layer.register_forward_hook(watch)
        model.register_forward_pre_hook(count)
        gc.disable()  # nor must it wait for the collector of garbage
        try:
            attribute(model, x.repeat(20, 1, 1, 1), batch_size=4, composite=EXACT, layers=["0", "3"], ledger=ledger)
        finally:
            gc.enable()
        assert len(alive) == 10 * 2 * len(model)
        assert seen == [0] * 10

    def test_progress_goes_to_stderr_alone(self, capsys):
        pytest.importorskip("tqdm")
        model, x = make("mlp")
        attribute(model, x, composite=EXACT, batch_size=2, progress=True)
        written = capsys.readouterr()
        assert not written.out
        assert "4/4" in written.err
        attribute(model, x, composite=EXACT, batch_size=2)
        assert capsys.readouterr().err == ""

    def test_without_a_batch_dimension(self):
        """A table of 3 rows and a number are handed on as they are, whatever the batch."""
        model = Fn(
            lambda self, x, table_mask, power: self.fc(x * table_mask.sum() ** power), fc=nn.Linear(4, 2).double()
        )
        x, table = torch.randn(5, 4, dtype=torch.float64), torch.arange(3)
        whole = attribute(model, {"x": x, "table_mask": table, "power": 2}, composite=EXACT, target=0)
        parts = attribute(model, {"x": x, "table_mask": table, "power": 2}, composite=EXACT, target=0, batch_size=2)
        assert_close(parts.relevance, whole.relevance)


class TestLedger:
    @pytest.mark.parametrize("preset", presets.TRANSFORMERS)
    @pytest.mark.parametrize("build", [bert, gpt2, llama])
    def test_adds_up(self, build, preset):
        found = attribute(build(), ids(), composite=preset, ledger=True)
        assert found.ledger.unaccounted < 1e-8
        assert_close(found.ledger.seed, found.output)
        assert_close(found.ledger.inputs, found.scores.sum(1))

    def test_only_on_request(self):
        assert attribute(bert(), ids()).ledger is None


class TestNoTrace:
    def test_afterwards(self):
        model = gpt2()
        before = fingerprint(model)
        attribute(model, ids(), layers=["*"], ledger=True, batch_size=2)
        assert fingerprint(model) == before

    def test_inputs_are_left_alone(self):
        model, x = make("cnn")
        x.requires_grad_()
        before = x.detach().clone()
        found = attribute(model, x, composite=EXACT)
        assert x.grad is None
        assert x.requires_grad
        assert torch.equal(x, before)
        assert not found.inputs["input"].requires_grad
        assert not found.relevance.requires_grad

    def test_random_numbers_are_left_alone(self):
        state = torch.get_rng_state()
        attribute(bert(), ids(), composite=EXACT)
        torch.set_rng_state(state)
        model = bert()
        state = torch.get_rng_state()
        attribute(model, ids(), composite=EXACT)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def found():
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, :2] = 0
    given = {"input_ids": ids(), "attention_mask": mask}
    return attribute(gpt2(), given, layers=["transformer.h.?"], ledger=True, target=(3, 5))


class TestResult:
    def test_save_and_load(self, found, tmp_path):
        found.save(tmp_path / "found.pt")
        again = Attribution.load(tmp_path / "found.pt")
        for name in ("relevance", "output", "target", "mask", "scores"):
            assert torch.equal(getattr(again, name), getattr(found, name))
        for name in ("latent", "inputs"):
            ours, theirs = getattr(found, name), getattr(again, name)
            assert list(ours) == list(theirs)
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert again.report == found.report
        assert str(again.ledger) == str(found.ledger)
        assert str(again.heatmap(sample=1)) == str(found.heatmap(sample=1))

    def test_several_inputs_and_views_are_saved(self, tmp_path):
        big = torch.randn(1000, 5, dtype=torch.float64)
        weights = big[:2]
        found = attribute(words(), {"ids": ids(2, 5), "weights": weights})
        found.save(tmp_path / "found.pt")
        assert (tmp_path / "found.pt").stat().st_size < 20_000
        again = Attribution.load(tmp_path / "found.pt")
        assert torch.equal(again.relevance["weights"], found.relevance["weights"])

    def test_a_file_cannot_run_code(self, tmp_path):
        class Hostile:
            def __reduce__(self):
                return (print, ("code has run",))

        path = tmp_path / "hostile.pt"
        torch.save({"format": "lxt_compose attribution", "version": 1, "relevance": Hostile()}, path)
        with pytest.raises(ValueError, match=r"hostile\.pt is no file that Attribution\.save\(\) wrote"):
            Attribution.load(path)

    @pytest.mark.parametrize("content", [b"", b"nothing", None, 2])
    def test_other_files(self, tmp_path, content):
        path = tmp_path / "other.pt"
        if content is None:
            torch.save({"weights": torch.ones(2)}, path)
        elif content == 2:
            torch.save({"format": "lxt_compose attribution", "version": 2}, path)
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match="later version" if content == 2 else "is no file that"):
            Attribution.load(path)

    def test_dataframe_of_tokens(self, found):
        pandas = pytest.importorskip("pandas")

        class Names:
            def convert_ids_to_tokens(self, row):
                return [f"t{i}" for i in row]

        table = found.to_dataframe(Names())
        assert list(table.columns) == ["sample", "position", "token", "score"]
        assert len(table) == 18
        row = table[(table["sample"] == 2) & (table["position"] == 4)].iloc[0]
        assert row["token"] == f"t{ids()[2, 4]}"
        assert row["score"] == pytest.approx(float(found.scores[2, 4]))
        assert isinstance(table, pandas.DataFrame)

    def test_dataframe_of_pixels_and_of_several_inputs(self):
        pytest.importorskip("pandas")
        model, x = make("cnn")
        found = attribute(model, x, composite=EXACT)
        table = found.to_dataframe()
        assert list(table.columns) == ["sample", "row", "column", "score"]
        assert table["score"].sum() == pytest.approx(float(found.relevance.sum()))
        assert table.set_index(["sample", "row", "column"])["score"][1, 7, 2] == pytest.approx(
            float(found.scores[1, 7, 2])
        )
        both = attribute(words(), {"ids": ids(2, 5), "weights": torch.rand(2, 5, dtype=torch.float64)}).to_dataframe()
        assert set(both["input"]) == {"ids", "weights"}
        assert len(both) == 20
        tokens = both.set_index("input")["token"]
        assert tokens["ids"].tolist() == ids(2, 5).flatten().tolist()
        assert (str(tokens.dtype), str(tokens["ids"].iloc[0])) == ("Int64", str(int(ids(2, 5)[0, 0])))
        assert tokens["weights"].isna().all()
        assert both["position"].dtype.kind == both["sample"].dtype.kind == "i"

    def test_patches(self):
        model, x = make("cnn")
        found = attribute(model, x, composite=EXACT)
        patches = found.patches((4, 3))
        assert patches.shape == (2, 2, 2)
        assert_close(patches[1, 0, 1], found.relevance[1, :, 0:4, 3:6].sum())
        assert_close(found.patches(8)[:, 0, 0], found.relevance.sum((1, 2, 3)))
        with pytest.raises(ValueError, match="9 x 9 does not fit into images of"):
            found.patches(9)

    def test_pictures(self, found):
        one, all_of_them = found.heatmap(sample=1), found.heatmap()
        assert isinstance(one, heatmap.TextHeatmap)
        assert [len(sentence.pieces) for sentence in all_of_them.sentences] == [6, 4, 6]
        assert [piece.text for piece in one.sentences[0].pieces] == [str(i) for i in ids()[1, 2:].tolist()]
        assert one.sentences[0].scores == pytest.approx(found.scores[1, 2:].tolist())
        named = found.heatmap(["a", "b", "c", "d"], sample=1)
        assert [piece.text for piece in named.sentences[0].pieces] == ["a", "b", "c", "d"]
        assert isinstance(heatmap.trace(["a", "b", "c"], found.tokens(), found.trace()[1]), heatmap.TraceHeatmap)
        model, x = make("cnn")
        image = attribute(model, x, composite=EXACT).heatmap()
        assert isinstance(image, heatmap.ImageHeatmap)
        assert len(image.maps) == 2
        model, x = make("mlp")
        assert attribute(model, x, composite=EXACT).heatmap().maps.shape == (1, 4, 6)
        number = attribute(Fn(lambda self, x: x * 2), x[:, 0], composite=EXACT)
        assert_close(number.scores, 2 * x[:, 0])
        assert number.heatmap(sample=1).maps.shape == (1, 1, 1)

    def test_printed(self, found):
        assert repr(found) == (
            f"<Attribution: input_ids [3, 6, 16], target {', '.join(f'{a} - {b}' for a, b in found.target)}, output "
            f"{', '.join(f'{float(value):.4g}' for value in found.output)}, 2 layers, complete>"
        )
        assert len(found) == 3
        shown = found._repr_html_()
        assert "lxt-text" in shown
        assert "nothing uncovered" in shown

    def test_sixteen_bits_are_added_up_in_thirty_two(self):
        model = bert().bfloat16()
        found = attribute(model, ids())
        assert found.relevance.dtype == torch.bfloat16
        assert torch.equal(found.scores, found.relevance.float().sum(-1))


@pytest.mark.parametrize("name", ["found.pt", "found.safetensors", "found.pt2", "found"])
def test_a_file_of_any_name_is_read_back(name, tmp_path):
    found = attribute(torch.nn.Linear(4, 2).eval(), torch.randn(2, 4), target=1)
    found.save(tmp_path / name)
    assert torch.equal(Attribution.load(tmp_path / name).relevance, found.relevance)
