"""The demo and the command line: a quick run end to end, its cache, its errors."""

import re
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
matplotlib_image = pytest.importorskip("matplotlib.image")
pytest.importorskip("tqdm")

from lxt_compose.cli.command_line import main  # noqa: E402
from lxt_compose.demo import pretrained  # noqa: E402
from lxt_compose.demo.data import load_digits, shifted  # noqa: E402
from lxt_compose.demo.explain import cnn_composite, explain, vit_composite  # noqa: E402
from lxt_compose.demo.main import run_demo  # noqa: E402
from lxt_compose.demo.models import SmallCNN, SmallViT  # noqa: E402
from lxt_compose.demo.training import Settings, accuracy, default_cache, trained  # noqa: E402


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for the tests that may find the weights there: trained once, by whichever comes first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def digits_alone(monkeypatch):
    """The networks that come trained have tests of their own."""
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)


def error_line(capsys):
    """The one line that the command wrote to stderr."""
    written = capsys.readouterr()
    assert not written.out
    (line,) = written.err.splitlines()
    assert line.startswith("lxt-compose: error: ")
    return line


class TestRun:
    def test_prints_tables_and_writes_a_picture(self, tmp_path, cache, capsys):
        arguments = ["demo", "--quick", "--no-progress", "--out", str(tmp_path / "new" / "out"), "--cache", str(cache)]
        assert main(arguments) == 0
        written = capsys.readouterr()
        assert not written.err
        assert len(re.findall(r"^complete: ", written.out, re.MULTILINE)) == 2
        assert "NOT complete" not in written.out
        assert written.out.count("the same as before, bit for bit") == 2
        assert written.out.count("left out: ") == 2
        picture = matplotlib_image.imread(tmp_path / "new" / "out" / "relevance.png")
        height, width = picture.shape[:2]
        assert 500 < height < width < 4000
        red, blue = picture[..., 0] - picture[..., 2] > 0.3, picture[..., 2] - picture[..., 0] > 0.3
        assert red.mean() > 0.005
        assert blue.mean() > 0.005

    def test_second_run_trains_nothing(self, tmp_path, cache):
        first = run_demo(tmp_path, quick=True, cache=cache)
        second = run_demo(tmp_path, quick=True, cache=cache)
        assert second.trained_now == ()
        assert second.text == first.text
        assert second.complete

    def test_keeps_the_random_state(self, tmp_path, cache):
        before = torch.get_rng_state()
        run_demo(tmp_path, quick=True, cache=cache)
        assert torch.equal(torch.get_rng_state(), before)

    def test_leaves_pyplot_alone(self, tmp_path, cache):
        was_loaded = "matplotlib.pyplot" in sys.modules
        run_demo(tmp_path, quick=True, cache=cache)
        assert ("matplotlib.pyplot" in sys.modules) == was_loaded


class TestTraining:
    QUICK = Settings(epochs=1, batch_size=256)

    def train(self, digits, cache, **options):
        return trained(lambda: SmallCNN(8), digits, self.QUICK, cache, **options)

    def test_cache(self, digits, tmp_path):
        first = self.train(digits, tmp_path)
        again = self.train(digits, tmp_path)
        forced = self.train(digits, tmp_path, retrain=True)
        assert (first.from_cache, again.from_cache, forced.from_cache) == (False, True, False)
        for other in (again, forced):
            for mine, theirs in zip(first.model.parameters(), other.model.parameters(), strict=True):
                torch.testing.assert_close(mine, theirs)
        assert not first.model.training
        assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]

    @pytest.mark.parametrize("damage", ["empty", "cut", "text", "another model", "not weights"])
    def test_a_damaged_file_is_trained_again(self, digits, tmp_path, damage):
        first = self.train(digits, tmp_path)
        (path,) = tmp_path.iterdir()
        whole = path.read_bytes()
        if damage == "another model":
            torch.save(nn.Linear(2, 2).state_dict(), path)
        elif damage == "not weights":
            torch.save([1, 2], path)
        else:
            path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"not a model"}[damage])
        again = self.train(digits, tmp_path)
        assert not again.from_cache
        for mine, theirs in zip(first.model.parameters(), again.model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)
        assert self.train(digits, tmp_path).from_cache

    def test_other_settings_are_another_file(self, digits, tmp_path):
        self.train(digits, tmp_path)
        other = trained(lambda: SmallCNN(8), digits, Settings(epochs=2, batch_size=256), tmp_path)
        assert not other.from_cache
        assert len(list(tmp_path.iterdir())) == 2

    def test_learns(self, digits, tmp_path):
        model, _ = trained(SmallCNN, digits, Settings(epochs=4), tmp_path)
        assert accuracy(model, digits.test_images, digits.test_labels) > 0.9

    def test_default_cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_cache() == tmp_path / "lxt_compose"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert default_cache() == tmp_path / ".cache" / "lxt_compose"


class TestData:
    def test_split(self, digits):
        assert len(digits.train_labels) + len(digits.test_labels) == 1797
        train, test = (torch.bincount(labels).double() for labels in (digits.train_labels, digits.test_labels))
        torch.testing.assert_close(train / train.sum(), test / test.sum(), atol=0.005, rtol=0)
        rows = {tuple(image.flatten().tolist()) for image in digits.train_images}
        assert not rows & {tuple(image.flatten().tolist()) for image in digits.test_images}
        assert digits.test_labels[digits.one_of_each(10)].tolist() == list(range(10))
        assert (digits.train_images.min(), digits.train_images.max()) == (0, 1)

    def test_shifted(self):
        image = torch.zeros(1, 1, 8, 8)
        image[0, 0, 3, 4] = 1
        moved = shifted(image.expand(500, -1, -1, -1), torch.Generator().manual_seed(0))
        assert moved.shape == (500, 1, 8, 8)
        places = moved.nonzero()[:, 2:]
        assert len(places) == 500
        assert set(map(tuple, places.tolist())) == {(row, column) for row in (2, 3, 4) for column in (3, 4, 5)}
        assert 0.4 < (places == torch.tensor([3, 4])).all(1).double().mean() < 0.7

    @pytest.mark.parametrize("build", [SmallCNN, SmallViT])
    def test_models(self, build):
        assert build()(torch.randn(3, 1, 8, 8)).shape == (3, 10)


def without_biases(build):
    """A model in eval mode, with every bias 0: relevance has nowhere to stay on its way."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model.eval()


class TestExplain:
    def test_relevance_of_the_cnn_adds_up_without_biases(self, digits):
        one = explain(cnn_composite(), without_biases(lambda: SmallCNN(8)), digits.test_images[:20])
        assert one.missing().max() < 1e-3
        assert one.shares() == {"pixels": pytest.approx(1, abs=1e-3)}
        assert one.report.complete
        assert not one.relevance[digits.test_images[:20] == 0].any()

    def test_tokens_of_the_vit_get_all_if_it_looks_at_nothing_else(self, digits):
        model = without_biases(SmallViT)
        with torch.no_grad():
            for layer in model.encoder.layers:
                layer.self_attn.out_proj.weight.zero_()
                layer.linear2.weight.zero_()
        one = explain(vit_composite(), model, digits.test_images[:20])
        assert not one.relevance.any()
        torch.testing.assert_close(one.elsewhere["class token and positions"], one.logits, rtol=1e-3, atol=1e-4)
        assert one.report.complete

    def test_plain_is_gradient_times_input(self, digits):
        model, x = SmallCNN(8).eval(), digits.test_images[:3].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).max(1).values.sum(), x)
        torch.testing.assert_close(explain(cnn_composite(), model, x.detach()).plain, (x * gradient).detach())


class TestCommand:
    def test_out_is_a_file(self, tmp_path, capsys):
        (tmp_path / "taken").write_text("")
        assert main(["demo", "--quick", "--out", str(tmp_path / "taken"), "--cache", str(tmp_path)]) == 2
        assert "taken" in error_line(capsys)

    @pytest.mark.parametrize(
        ("module", "package"), [("sklearn", "scikit-learn"), ("tqdm", "tqdm"), ("matplotlib", "matplotlib")]
    )
    def test_a_package_is_missing(self, tmp_path, capsys, monkeypatch, module, package):
        monkeypatch.setitem(sys.modules, module, None)
        assert main(["demo", "--out", str(tmp_path / "out"), "--cache", str(tmp_path)]) == 2
        assert f"the demo needs {package}: pip install 'lxt-compose[demo]'" in error_line(capsys)

    def test_debug_shows_the_traceback(self, tmp_path, capsys):
        (tmp_path / "taken").write_text("")
        assert main(["demo", "--quick", "--debug", "--out", str(tmp_path / "taken")]) == 2
        assert "Traceback" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [[], ["dem"], ["demo", "--out"], ["demo", "--out", "x", "--fast"]])
    def test_wrong_arguments(self, arguments, capsys):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert "error: " in capsys.readouterr().err.splitlines()[-1]

    @pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["--version"]])
    def test_help_and_version(self, arguments, capsys):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        assert "lxt-compose" in capsys.readouterr().out

    def test_interrupted(self, monkeypatch, capsys):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("lxt_compose.cli.command_line.run_demo", interrupt)
        assert main(["demo", "--out", "x"]) == 130
        assert capsys.readouterr().err == "lxt-compose: interrupted\n"
