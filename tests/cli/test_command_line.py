"""The command line: answers on stdout, all else on stderr, exit codes, errors in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lxt_compose import presets, rules
from lxt_compose.cli.command_line import main
from lxt_compose.cli.composite_options import read_arguments
from lxt_compose.cli.result_text import regions
from lxt_compose.cli.targets import Vocabulary

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))

def with_inputs():
    return nn.Linear(4, 2), torch.randn(3, 4)

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3
    @staticmethod
    def backward(ctx, slot):
        return 3 * ctx.saved_tensors[0] ** 2 * slot

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
    def forward(self, x):
        return Cube.apply(self.fc(x))

def odd():
    return Odd(), torch.randn(2, 4)

ready = nn.Linear(4, 2)
number = 3
def needs(something): ...
def no_model(): return "a model"
def broken(): raise ValueError("out of order")
def later(): return None + 1

class Chatty(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
    def forward(self, x):
        print("noise")
        return self.fc(x)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.gate = nn.Linear(4, 3), nn.Linear(4, 3)
    def forward(self, x, y):
        assert not x.equal(y)
        return self.fc(x) - self.gate(y)

class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((-1, -2)))
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A Python module in the working directory."""
    (tmp_path / "zoo_of_this_test.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    yield "zoo_of_this_test"
    sys.modules.pop("zoo_of_this_test", None)


def run(capsys, *arguments):
    """Exit code, stdout and stderr of a command."""
    code = main([str(argument) for argument in arguments])
    written = capsys.readouterr()
    return code, written.out, written.err


def failed(capsys, *arguments):
    """The message of the one line that a command wrote before it failed; progress lines aside."""
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    *progress, last = err.splitlines()
    assert all(line.startswith("lxt-compose: ") and "error" not in line for line in progress)
    assert last.startswith("lxt-compose: error: ")
    return last.removeprefix("lxt-compose: error: ")


class TestLists:
    def test_presets(self, capsys):
        code, out, err = run(capsys, "presets")
        assert (code, err) == (0, "")
        for name in presets.available():
            assert name in out
        data = json.loads(run(capsys, "presets", "--json")[1])
        assert [row["name"] for row in data] == list(presets.available())
        assert all(row["summary"].endswith(".") for row in data)

    def test_one_preset(self, capsys):
        code, out, _ = run(capsys, "presets", "cp_lrp")
        assert code == 0
        assert out.startswith("cp_lrp(")
        assert "Source: Ali et al. 2022" in out
        assert "no preset is called 'cp-lrp'; closest: cp_lrp" in failed(capsys, "presets", "cp-lrp")

    def test_rules(self, capsys):
        code, out, err = run(capsys, "rules")
        assert (code, err) == (0, "")
        assert "AlphaBeta(alpha=2.0, beta=1.0" in out
        listed = {row["name"].partition("(")[0]: row for row in json.loads(run(capsys, "rules", "--json")[1])}
        assert {"Epsilon", "Gamma", "ZBox", "Flat", "Identity"} <= set(listed)
        assert listed["Flat"]["formulations"] == "relevance"
        assert listed["Epsilon"]["formulations"] == "relevance, gradient"
        assert set(listed) == {
            name for name in rules.__all__ for kind in (getattr(rules, name),)
            if isinstance(kind, type) and issubclass(kind, rules.Rule) and kind is not rules.Rule
        }  # fmt: skip

    @pytest.mark.parametrize("command", ["rules", "presets"])
    def test_lists_are_read_in_a_terminal(self, capsys, monkeypatch, command):
        monkeypatch.setenv("COLUMNS", "80")
        out = run(capsys, command)[1]
        assert max(map(len, out.splitlines())) <= 80
        assert ":class:" not in out
        assert "`" not in out

    def test_a_second_name_says_of_what(self, capsys):
        summaries = {row["name"]: row["summary"] for row in json.loads(run(capsys, "rules", "--json")[1])}
        assert summaries["IdentityRule(zero_bias=True)"].startswith("Identity by the name that it has in LXT")
        assert summaries["UniformRule()"] == "Another name of Uniform, as in LXT."

    def test_a_preset_with_arguments_is_described(self, capsys):
        code, out, _ = run(capsys, "presets", "epsilon_gamma_box")
        assert code == 0
        assert out.startswith("epsilon_gamma_box(low, high, rules=(), *, gamma=0.25")
        assert "ZBox for the first layer" in out

    def test_one_rule(self, capsys):
        assert run(capsys, "rules", "Gamma")[1].startswith("Gamma(gamma=")
        assert "no rule is called 'Gama'; there are AlphaBeta, " in failed(capsys, "rules", "Gama")


class TestReportOfAFunction:
    def test_with_a_shape(self, models, capsys):
        code, out, err = run(capsys, "report", f"{models}:net", "--input-shape", "2,1,8,8")
        assert code == 0
        assert out.startswith("Sequential, preset attnlrp, input 2x1x8x8\n\ncomplete: ")
        assert "conv2d" in out
        assert err.splitlines()[0] == f"lxt-compose: loading {models}:net"
        assert run(capsys, "report", f"{models}:net", "--input-shape", "2x1x8x8", "--quiet") == (0, out, "")

    def test_a_shape_for_each_argument(self, models, capsys):
        shapes = ["--input-shape", "2,4", "--input-shape", "2x4"]
        code, out, _ = run(capsys, "report", f"{models}:Two", *shapes)
        assert code == 0
        assert out.startswith("Two, preset attnlrp, input 2x4, 2x4\n\ncomplete: ")
        message = failed(capsys, "report", f"{models}:Two", *shapes, "--input-shape", "2,5")
        assert "failed on the inputs" in message
        assert message.endswith("takes 3 positional arguments but 4 were given")

    @pytest.mark.parametrize("name", ["with_inputs", "ready"])
    def test_with_its_inputs(self, models, capsys, name):
        shape = ["--input-shape", "3,4"] if name == "ready" else []
        code, out, _ = run(capsys, "report", f"{models}:{name}", *shape, "--ledger", "--every-row")
        assert code == 0
        assert "input 3x4" in out
        assert "unaccounted" in out

    def test_json(self, models, capsys):
        code, out, _ = run(capsys, "report", f"{models}:with_inputs", "--json", "--ledger", "--preset", "cp_lrp")
        data = json.loads(out)
        assert code == 0
        assert (data["model"], data["preset"], data["complete"], data["uncovered"]) == ("Linear", "cp_lrp", True, [])
        assert data["rows"][0]["target"] == "linear"
        assert data["ledger"]["unaccounted"] < 1e-5

    def test_incomplete_is_told_by_the_exit_code(self, models, capsys):
        code, out, _ = run(capsys, "report", f"{models}:odd")
        assert code == 1
        assert "NOT complete: 1 uncovered: Cube.apply in (model)" in out
        code, out, _ = run(capsys, "report", f"{models}:odd", "--json")
        assert code == 1
        assert json.loads(out)["complete"] is False

    @pytest.mark.parametrize(
        ("model", "options", "message"),
        [
            ("nowhere", [], "'nowhere' is no folder here, and no module:factory; models are not downloaded"),
            ("no_such_module:f", [], "the module 'no_such_module' cannot be imported: No module named"),
            ("{}:nothing", [], "the module 'zoo_of_this_test' has nothing called 'nothing'"),
            ("{}:number", [], "zoo_of_this_test:number is or gave int, not a torch.nn.Module"),
            ("{}:needs", [], "zoo_of_this_test:needs cannot be called without arguments: missing a required"),
            ("{}:no_model", [], "zoo_of_this_test:no_model is or gave str, not a torch.nn.Module"),
            ("{}:broken", [], "{}:broken() raised ValueError: out of order ({}.py, line "),
            ("{}:later", [], "{}:later() raised TypeError: unsupported operand type(s) for +: "),
            ("half_of_this_test:net", [], "the module 'half_of_this_test' cannot be imported: NameError: name 'oops'"),
            ("bent_of_this_test:net", [], "the module 'bent_of_this_test' cannot be imported: SyntaxError: "),
            ("./{}:net", [], "is no folder here, and no module:factory"),
            ("{}:net", [], "Sequential has no config that tells its inputs; give --input-shape"),
            ("{}:net", ["--input-shape", "2,3,8,8"], "Sequential (parameters: float32 on cpu) failed on the inputs"),
            ("{}:net", ["--preset", "lrp"], "no preset is called 'lrp'"),
            (".", [], ". holds no config.json, so it is no checkpoint of transformers"),
        ],
    )
    def test_errors(self, models, capsys, model, options, message):
        Path("half_of_this_test.py").write_text("net = oops")
        Path("bent_of_this_test.py").write_text("def net(:")
        assert message.replace("{}", models) in failed(capsys, "report", model.format(models), *options)

    def test_debug_shows_the_traceback(self, models, capsys):
        code, _, err = run(capsys, "report", f"{models}:broken", "--debug")
        assert code == 2
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith(f"lxt-compose: error: {models}:broken() raised ValueError: out of order")

    def test_the_path_is_left_alone(self, models, capsys):
        before = list(sys.path)
        run(capsys, "report", f"{models}:with_inputs")
        assert sys.path == before

    def test_what_a_model_prints_is_no_part_of_the_answer(self, models, capsys):
        code, out, err = run(capsys, "report", f"{models}:Chatty", "--input-shape", "1x4", "--json", "--quiet")
        assert code == 0
        assert json.loads(out)["model"] == "Chatty"
        assert set(err.splitlines()) == {"noise"}

    @pytest.mark.parametrize("shape", ["", "a,b", "3,0", "3,,4", "-1", "1x3,9", "1x", "x"])
    def test_wrong_shapes(self, models, capsys, shape):
        with pytest.raises(SystemExit) as stopped:
            main(["report", f"{models}:net", f"--input-shape={shape}"])
        assert stopped.value.code == 2
        assert "is no shape such as 1,3,32,32 or 1x3x32x32" in capsys.readouterr().err


class TestRulesWanted:
    """Arguments of presets, and merged batch norms."""

    def report(self, models, capsys, *options):
        return run(capsys, "report", f"{models}:Normed", "--input-shape", "1,3,8,8", "--quiet", *options)

    BOX = ("--preset", "epsilon_gamma_box", "--preset-arg")

    def test_a_preset_that_needs_arguments(self, models, capsys):
        code, out, _ = self.report(models, capsys, *self.BOX, "low=-1", "--preset-arg", "high=1.5", "--json")
        assert code == 0
        data = json.loads(out)
        assert data["preset"] == "epsilon_gamma_box(low=-1, high=1.5)"
        assert "ZBox(low=-1, high=1.5)" in {row["rule"] for row in data["rows"]}
        code, out, _ = self.report(models, capsys, *self.BOX, "low=-1,-2,-3", "--preset-arg", "high=2")
        assert code == 0
        assert "ZBox(low=tensor(" in out

    def test_values(self):
        found = read_arguments(["a=1", "b=-0.5", "c=true", "d=False", "e=gradient", "f=1e-3", "g=1,2.5"])
        assert {name: value for name, value in found.items() if name != "g"} == {
            "a": 1, "b": -0.5, "c": True, "d": False, "e": "gradient", "f": 1e-3,
        }  # fmt: skip
        assert type(found["a"]) is int
        assert found["g"].tolist() == [[[1.0]], [[2.5]]]

    def test_merged_batch_norms(self, models, capsys):
        code, out, _ = self.report(models, capsys, "--preset", "epsilon_plus", "--merge-batch-norm")
        assert code == 0
        assert "preset epsilon_plus with merged batch norms" in out
        assert "batch norms merged: conv + norm" in out
        assert "batch norms merged" not in self.report(models, capsys, "--preset", "epsilon_plus")[1]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--preset", "epsilon_gamma_box"], "needs low and high: "),
            ([*BOX, "low=1", "--preset-arg", "high=0"], "low must not be above high, got low=1, high=0"),
            (
                [*BOX, "low=a", "--preset-arg", "high=0"],
                "low must be a number, got 'a' of type str; here arguments are",
            ),
            ([*BOX, "low=1", "--preset-arg", "low=2"], "the argument 'low' of the preset is given twice"),
            ([*BOX, "low"], "an argument of a preset is given as name=value, such as gamma=0.25, got 'low'"),
            ([*BOX, "=1"], "an argument of a preset is given as name=value, such as gamma=0.25, got '=1'"),
            (["--preset-arg", "gama=1"], "the preset 'attnlrp' has no argument 'gama'; it has "),
            (["--preset-arg", "rules=1"], "the argument 'rules' of a preset cannot be given as text"),
            (["--preset-arg", "formulation=up"], "formulation must be one of relevance, gradient, got 'up'"),
        ],
    )
    def test_errors(self, models, capsys, options, message):
        assert message in failed(capsys, "report", f"{models}:Normed", "--input-shape", "1,3,8,8", *options)


class TestShell:
    def shell(self, command, folder, **options):
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            ["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=100, **options
        )

    def test_a_reader_that_stops_early(self, tmp_path):
        command = f"{{ {sys.executable} -m lxt_compose rules; echo $? >code; }} | true"
        done = self.shell(command, tmp_path)
        assert (tmp_path / "code").read_text() == "0\n"
        assert done.stderr == ""

    @pytest.mark.parametrize("arguments", ["", "explain", "explain x --generate 2 --continuation a", "report"])
    def test_wrong_arguments(self, capsys, arguments):
        with pytest.raises(SystemExit) as stopped:
            main(arguments.split())
        assert stopped.value.code == 2
        assert "lxt-compose" in capsys.readouterr().err

    @pytest.mark.parametrize("command", ["explain", "report", "presets", "rules"])
    def test_help(self, capsys, command):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert "--json" in capsys.readouterr().out


class TestCheckpoints:
    """Real folders: a tiny model with random weights, and a tokenizer trained on a few sentences."""

    @pytest.fixture(scope="module")
    @staticmethod
    def folders(tmp_path_factory):
        pytest.importorskip("transformers")
        pytest.importorskip("tokenizers")
        import checkpoints

        root = tmp_path_factory.mktemp("checkpoints")
        for kind in ("bert", "gpt2", "llama", "vit"):
            getattr(checkpoints, f"save_{kind}")(root / kind)
        return root

    TEXT = "the unbelievable film wasn't boring"

    def test_a_classifier(self, folders, capsys):
        code, out, err = run(capsys, "explain", folders / "bert", "--text", self.TEXT, "--target", "positive")
        assert code == 0
        assert out.startswith("BertForSequenceClassification, preset attnlrp: the relevance for POSITIVE: ")
        assert [line.split()[-1] for line in out.splitlines()[2:4]] == ["[CLS]", "the"]
        assert "\x1b" not in out
        assert err.splitlines() == [
            f"lxt-compose: loading {folders / 'bert'}",
            "lxt-compose: explaining BertForSequenceClassification with attnlrp",
        ]

    def test_the_numbers(self, folders, capsys):
        """What --json says is what attribute() says of the model loaded by hand."""
        from transformers import AutoTokenizer, GPT2LMHeadModel

        from lxt_compose import attribute

        _, out, _ = run(
            capsys, "explain", folders / "gpt2", "--text", self.TEXT, "--json", "--target", "#7", "--against", " the",
            "--ledger", "--preset", "cp_lrp",
        )  # fmt: skip
        data = json.loads(out)
        model, tokenizer = (
            GPT2LMHeadModel.from_pretrained(folders / "gpt2"),
            AutoTokenizer.from_pretrained(folders / "gpt2"),
        )
        ids = tokenizer(self.TEXT, return_tensors="pt")["input_ids"]
        the = tokenizer.encode(" the", add_special_tokens=False)
        assert data["target"] == [7, *the]
        found = attribute(model.eval(), ids, target=(7, the[0]), composite="cp_lrp")
        assert [token["score"] for token in data["tokens"]] == pytest.approx(found.scores[0].tolist(), abs=1e-6)
        assert [token["id"] for token in data["tokens"]] == ids[0].tolist()
        assert data["output"] == pytest.approx(float(found.output[0]), abs=1e-6)
        logits = model(ids).logits[0, -1].detach()
        assert data["top"][0]["logit"] == pytest.approx(float(logits.max()), abs=1e-5)
        assert data["top"][0]["probability"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
        assert data["complete"]
        assert data["ledger"]["unaccounted"] < 1e-4

    def test_others_words_and_what_the_model_answers(self, folders, capsys):
        _, out, _ = run(capsys, "explain", folders / "bert", "--text", self.TEXT, "--against", "others", "--words")
        assert " less the mean of all others: " in out.splitlines()[0]
        words = [line.split()[-1] for line in out.split("\n\n")[1].splitlines()]
        assert words == ["[CLS]", "the", "unbelievable", "film", "wasn't", "boring", "[SEP]"]
        scores = [float(line.split()[0]) for line in out.split("\n\n")[1].splitlines()]
        pieces = json.loads(
            run(capsys, "explain", folders / "bert", "--text", self.TEXT, "--against", "others", "--json")[1]
        )
        assert sum(scores) == pytest.approx(sum(token["score"] for token in pieces["tokens"]), rel=1e-2, abs=1e-4)

    @pytest.mark.parametrize("suffix", [".html", ".png", ".pdf", ".svg", ".pt"])
    def test_files(self, folders, capsys, tmp_path, suffix):
        if suffix != ".pt":
            pytest.importorskip("matplotlib")
        out = tmp_path / f"found{suffix}"
        code, _, err = run(
            capsys, "explain", folders / "llama", "--text", self.TEXT, "--out", out, "--dtype", "float64"
        )
        assert code == 0
        assert err.splitlines()[-1] == f"lxt-compose: written: {out}"
        if suffix == ".pt":
            from lxt_compose import Attribution

            found = Attribution.load(out)
            assert found.relevance.dtype == torch.float64
            assert list(found.latent) == ["model.layers.0", "model.layers.1"]
        if suffix == ".html":
            assert "Layer by layer" in out.read_text()

    def test_an_image(self, folders, capsys, tmp_path):
        pytest.importorskip("matplotlib")
        image = pytest.importorskip("PIL.Image")
        image.effect_noise((40, 30), 90).save(tmp_path / "noise.png")
        out = tmp_path / "page.html"
        code, text, _ = run(
            capsys,
            "explain",
            folders / "vit",
            "--image",
            tmp_path / "noise.png",
            "--out",
            out,
            "--target",
            "dog",
            "--json",
        )
        data = json.loads(text)
        assert code == 0
        assert data["title"].startswith("dog: ")
        assert len(data["scores"]) == len(data["scores"][0]) == 16
        assert out.read_text().count("data:image/png;base64,") == 3

    def test_where_in_an_image(self, folders, capsys, tmp_path):
        """A coarse table without a file, which adds up to what is said to reach the input."""
        pytest.importorskip("PIL.Image").effect_noise((40, 30), 90).save(tmp_path / "noise.png")
        command = "explain", folders / "vit", "--image", tmp_path / "noise.png", "--quiet"
        head, *rows = run(capsys, *command)[1].split("\n\n")[1].splitlines()
        assert head.startswith("where in the image: 8 x 8 regions, 100 is +")
        assert head.endswith(" (--out picture.png draws every pixel)")
        scores = torch.tensor(json.loads(run(capsys, *command, "--json")[1])["scores"])
        blocks = scores.unflatten(1, (8, 2)).unflatten(0, (8, 2)).sum((1, 3))
        shown = torch.tensor([[int(cell) for cell in row.split()] for row in rows])
        torch.testing.assert_close(shown, (100 * blocks / blocks.abs().max()).round().long(), atol=1, rtol=0)
        assert shown.abs().max() == 100
        with_file = run(capsys, *command, "--out", tmp_path / "found.pt")[1]
        assert "8 x 8 regions" in with_file
        assert "--out" not in with_file

    @pytest.mark.parametrize("shape", [(5, 19), (1, 1), (8, 3)])
    def test_regions_lose_nothing(self, shape):
        scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        grid = regions(scores)
        assert grid.shape == (min(8, shape[0]), min(8, shape[1]))
        assert float(grid.sum()) == pytest.approx(float(scores.double().sum()))

    @pytest.mark.parametrize("preset", ["guided_backprop", "deconvnet", "beta_smooth", "excitation_backprop"])
    def test_what_is_no_relevance_is_not_called_so(self, folders, capsys, tmp_path, preset):
        page = tmp_path / "page.html"
        command = "explain", folders / "llama", "--text", self.TEXT, "--preset", preset, "--quiet", "--target", "#7"
        out = run(capsys, *command, "--out", page)[1]
        assert out.startswith(f"LlamaForCausalLM, preset {preset}: for '")
        assert "\n\nnot relevance: the gradient as the method changes it (x.grad, from a start of 1)\n\n" in out
        assert "the input has" not in out
        assert "This is not relevance: " in page.read_text()
        assert json.loads(run(capsys, *command, "--json")[1])["relevance"] is False
        command = "explain", folders / "llama", "--text", self.TEXT, "--quiet", "--target", "#7"
        assert "the input has " in run(capsys, *command)[1]
        assert json.loads(run(capsys, *command, "--json")[1])["relevance"] is True

    def test_colors_on_a_terminal(self, folders, capsys, monkeypatch):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert "\x1b[" in run(capsys, "explain", folders / "bert", "--text", self.TEXT)[1]
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b[" not in run(capsys, "explain", folders / "bert", "--text", self.TEXT)[1]

    @pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "vit"])
    def test_report(self, folders, capsys, kind, tmp_path):
        (tmp_path / "config.json").write_bytes((folders / kind / "config.json").read_bytes())
        for folder in (folders / kind, tmp_path):  # with weights, and without
            code, out, err = run(capsys, "report", folder)
            assert code == 0
            assert "\n\ncomplete: " in out
            assert ("holds no weights" in err) == (folder is tmp_path)

    def test_report_with_a_shape_that_a_checkpoint_does_not_take(self, folders, capsys):
        message = failed(capsys, "report", folders / "bert", "--input-shape", "1,8")
        assert message.endswith("takes token ids, which are made from its config; leave out --input-shape")

    def test_the_page_fits_a_narrow_screen(self, folders, capsys, tmp_path):
        from browser import Page

        path = tmp_path / "page.html"
        run(capsys, "explain", folders / "bert", "--text", self.TEXT, "--ledger", "--out", path)
        with Page(path, tmp_path / ".profile", size=(380, 700)) as seen:
            assert seen.run("document.documentElement.scrollWidth") <= 380
            assert seen.messages() == []

    @pytest.mark.parametrize("kind", ["T5", "Whisper", "CLIP", "Wav2Vec2"])
    def test_report_of_other_kinds(self, kind, capsys, tmp_path):
        """Inputs are made up for an encoder with a decoder, for speech, for images with texts, and for raw sound."""
        import transformers

        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        speech = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        config = {
            "T5": lambda: transformers.T5Config(d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=16, vocab_size=60),
            "Whisper": lambda: transformers.WhisperConfig(
                d_model=16, vocab_size=60, max_source_positions=20, encoder_ffn_dim=16, decoder_ffn_dim=16,
                pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, **speech,
            ),
            "CLIP": lambda: transformers.CLIPConfig(
                text_config={**size, "vocab_size": 60, "projection_dim": 8},
                vision_config={**size, "image_size": 16, "patch_size": 8, "projection_dim": 8}, projection_dim=8,
            ),
            "Wav2Vec2": lambda: transformers.Wav2Vec2Config(
                **size, vocab_size=30, conv_dim=(8, 8), conv_stride=(20, 20), conv_kernel=(20, 20),
                num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
            ),
        }[kind]()  # fmt: skip
        heads = {
            "T5": "ForConditionalGeneration",
            "Whisper": "ForConditionalGeneration",
            "CLIP": "Model",
            "Wav2Vec2": "ForCTC",
        }
        config.architectures = [kind + heads[kind]]
        config.save_pretrained(tmp_path)
        code, out, err = run(capsys, "report", tmp_path)
        assert code == 0, err
        assert "\n\ncomplete: " in out

    @pytest.mark.parametrize(
        ("kind", "options", "message"),
        [
            ("bert", ["--text", "a", "--target", "good"], "no class is called 'good'; classes: negative, neutral, "),
            ("bert", ["--text", "a", "--target", "7"], "target 7 is out of range: the model has 3 outputs, 0 to 2"),
            ("bert", ["--text", "a " * 60], "tokens, but BertForSequenceClassification takes at most 40"),
            ("bert", ["--image", "a.png"], "BertForSequenceClassification is no classifier of images"),
            ("bert", ["--text", "a", "--out", "page.txt"], "--out must end in .html, .png, .pdf, .svg or .pt, got"),
            ("bert", ["--text", "a", "--out", "no/page.html"], "the folder of --out does not exist: no"),
            ("bert", ["--text", "a", "--preset", "lrp"], "no preset is called 'lrp'"),
            ("bert", ["--text", "a", "--device", "nowhere"], "--device nowhere cannot be used: "),
            ("bert", ["--text", "a", "--target", "2", "--against", "positive"], "--target and --against are the same"),
            ("bert", ["--text", "a", "--preset", "epsilon_gamma_box"], "needs low and high"),
            ("gpt2", ["--text", "a", "--target", ""], "a target is a token or its number, such as #17; got an"),
            ("vit", ["--image", "no.png", "--words"], "--words is for texts"),
            ("gpt2", ["--text", ""], "the text has no tokens"),
            ("gpt2", ["--text", "a", "--target", "unbelievable films"], "'unbelievable films' is not one token but"),
            ("vit", ["--text", "a"], "ViTForImageClassification is neither a causal language model nor a"),
            ("vit", ["--image", "no.png"], "the image no.png cannot be read: "),
        ],
    )  # fmt: skip
    def test_errors(self, folders, capsys, kind, options, message):
        assert message in failed(capsys, "explain", folders / kind, *options)

    @pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
    def test_a_token_that_is_not_in_the_vocabulary(self, named):
        from trained_tokenizers import wordpiece
        from transformers import PreTrainedTokenizerFast

        names = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=wordpiece(), unk_token="[UNK]" if named else None))
        made = r"is not in the vocabulary: the tokenizer makes \[UNK\] of it; give a token as it is written in a text"
        with pytest.raises(ValueError, match=f"'999' {made}, or its number, #999 for token 999$"):
            names("999")
        with pytest.raises(ValueError, match=f"'☃' {made}, or its number, such as #17$"):
            names("☃")
        with pytest.raises(ValueError, match="' ' is not in the vocabulary: the tokenizer makes nothing of it"):
            names(" ")
        assert (names("[UNK]"), names("#999")) == (1, 999)
        assert names.name(names("film")) == "'film'"

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("tokenizer", "holds no tokenizer (tokenizer_config.json)"),
            ("weights", "holds no weights (*.safetensors, *.bin)"),
            ("half", "the weights in"),
            ("config", "config.json cannot be used"),
            ("class", "config.json names NoSuchModel, which this version of transformers does not have"),
            ("head", "the checkpoint has no weights for classifier.bias, classifier.weight of"),
        ],
    )
    def test_damaged_folders(self, folders, capsys, tmp_path, damage, message):
        import shutil

        from safetensors.torch import load_file, save_file

        folder = tmp_path / "bert"
        shutil.copytree(folders / "bert", folder)
        weights, config = folder / "model.safetensors", folder / "config.json"
        if damage == "tokenizer":
            (folder / "tokenizer_config.json").unlink()
        elif damage == "weights":
            weights.unlink()
        elif damage == "half":
            weights.write_bytes(weights.read_bytes()[:500])
        elif damage == "config":
            config.write_text("{")
        elif damage == "class":
            config.write_text(config.read_text().replace("BertForSequenceClassification", "NoSuchModel"))
        else:
            tensors = load_file(weights)
            save_file({k: v for k, v in tensors.items() if "classifier" not in k}, weights, {"format": "pt"})
        assert message in failed(capsys, "explain", folder, "--text", "a")

    def test_without_transformers(self, folders, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        message = failed(capsys, "explain", folders / "bert", "--text", "a")
        assert message == "checkpoints need transformers: pip install 'lxt-compose[hf]'"

    def test_from_a_shell_in_a_fresh_environment(self, folders, tmp_path):
        """A hostile token of the vocabulary, from the folder to the page, as a browser shows it."""
        import checkpoints
        from transformers import AutoTokenizer

        hostile = '<script>document.title="owned"</script>'
        tokenizer = AutoTokenizer.from_pretrained(folders / "bert")
        tokenizer.add_tokens([hostile])
        checkpoints.save_bert(tmp_path / "my checkpoint", tokenizer)
        config = tmp_path / "my checkpoint" / "config.json"
        config.write_text(config.read_text().replace("neutral", "<b id=hostile>neutral"))
        command = (
            f"{sys.executable} -m lxt_compose explain 'my checkpoint' --text 'the film was boring {hostile}!' --ledger "
            f"--target negative --out page.html"
        )
        done = TestShell().shell(command, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("BertForSequenceClassification, preset attnlrp: the relevance for negative: ")
        lines = done.stderr.splitlines()  # an installed torchao writes lines of its own
        assert sum(line.startswith("lxt-compose: ") for line in lines) == 3
        assert "Traceback" not in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
            "my checkpoint",
            "page.html",
        ]

        from browser import Page

        scores = {}
        for line in done.stdout.split("\n\n")[1].splitlines():
            number, _, token = (line[:34] + "\t" + line[34:]).partition("\t")
            scores[token.strip()] = float(number.split()[0])
        with Page(tmp_path / "page.html", tmp_path / ".profile") as seen:
            assert seen.run("document.title").startswith("negative: ")
            assert seen.run("document.scripts.length") == 0
            assert seen.run("document.getElementById('hostile')") is None
            assert "<b id=hostile>neutral" in seen.run("document.querySelector('.lxt-top').textContent")
            texts = seen.run("[...document.querySelectorAll('.lxt-text .t')].map(e => e.textContent)")
            assert hostile in texts
            place = texts.index(hostile)
            seen.hover(".lxt-text .t", place)
            tip = seen.run(f"getComputedStyle(document.querySelectorAll('.lxt-text .t')[{place}], '::after').content")
            assert tip.replace('\\"', '"') == f'"{hostile}  {scores[hostile]:+.4g}"'
            colors = seen.run(
                "[...document.querySelectorAll('.lxt-text .t')].map(e => getComputedStyle(e).backgroundColor)"
            )
            strongest = max(range(len(texts)), key=lambda i: abs(scores[texts[i]]))
            assert colors[strongest].endswith(", 0.72)")
            rows = seen.run("document.querySelectorAll('.lxt-trace tr').length")
            assert rows == 1 + 1 + 2
            assert seen.run("[...document.querySelectorAll('h2')].map(e => e.textContent)") == [
                "What the model answers", "Layer by layer", "Where the relevance went", "Which rules were at work",
            ]  # fmt: skip
            assert seen.messages() == []
